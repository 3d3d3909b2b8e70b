"""When jobs arrive: at random, or in bursts. Seeded, so that every routing sees the same jobs."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BURST = 4.0  # times the calm rate
BURST_SECONDS, CALM_SECONDS = 3.0, 12.0  # on average
CLIENTS = 1000  # many, so that nobody exceeds a client's share of a queue


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """Jobs of one image each, in the order in which they arrive.

    Attributes:
        at: seconds, (n,).
        calls: UNet calls of each, (n,).
        clients: the number of the client of each, (n,).
        seconds: the length of the trace.
    """

    at: NDArray[np.float64]
    calls: NDArray[np.int64]
    clients: NDArray[np.int64]
    seconds: float


def trace(kind: str, rate: float, seconds: float, seed: int, steps: tuple[int, ...] = (20,)) -> Trace:
    """A trace of `rate` jobs a second on average; `kind` is a key of `KINDS`. Bursts come at times that the seed says,
    whatever the rate, so that fleets of all sizes see the same ones."""
    rng = np.random.default_rng([seed, round(1000 * rate)])
    at = KINDS[kind](rng, rate, seconds, seed)
    return Trace(at, rng.choice(steps, len(at)), rng.integers(CLIENTS, size=len(at)), seconds)


def _poisson(rng: np.random.Generator, rate: float, seconds: float, _seed: int) -> NDArray[np.float64]:
    """Arrivals that know nothing of each other."""
    return np.sort(rng.uniform(0, seconds, rng.poisson(rate * seconds)))


def _bursts(rng: np.random.Generator, rate: float, seconds: float, seed: int) -> NDArray[np.float64]:
    """A Poisson process whose rate changes between two values at random times (an MMPP of two states)."""
    times = np.random.default_rng(seed)
    starts, bursts = [0.0], [False]
    while (end := starts[-1] + times.exponential(BURST_SECONDS if bursts[-1] else CALM_SECONDS)) < seconds:
        starts.append(end)
        bursts.append(not bursts[-1])
    lengths = np.diff([*starts, seconds])
    weights = np.where(bursts, BURST, 1.0)
    calm = rate * seconds / (weights @ lengths)
    parts = zip(starts, lengths, calm * weights, strict=True)
    return np.concatenate([start + _poisson(rng, there, length, 0) for start, length, there in parts])


KINDS = {"poisson": _poisson, "bursts": _bursts}
