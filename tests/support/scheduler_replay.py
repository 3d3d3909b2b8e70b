"""Recorded trajectories of diffusers' schedulers, and the same figures of a plan."""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from support.exports import ROOT
from support.scheduler_reference import SHAPE, TIMESTEP_TOLERANCE

FILE = ROOT / "tests" / "data" / "schedulers.npz"
# One direction in the space of latents, with signs as from a coin.
DIRECTION = np.where(np.random.default_rng(9).random(SHAPE) < 0.5, -1.0, 1.0) / np.sqrt(np.prod(SHAPE))


@dataclass(frozen=True, slots=True, eq=False)
class Recorded:
    """One case: timesteps (M,), and `projected` of its run, (M + 1, 4)."""

    timesteps: np.ndarray[Any, Any]
    values: np.ndarray[Any, Any]


def case_key(config: dict[str, Any], steps: int, eta: float) -> int:
    """Tells cases apart, so that a record is never compared with another case."""
    return zlib.crc32(repr((sorted(config.items()), steps, eta)).encode())


def projected(run: dict[str, Any]) -> np.ndarray[Any, Any]:
    """(M + 1, 4): projection and largest absolute value of each model input, and of each clean prediction.

    Where a class keeps its clean prediction to itself, and after the last call, these are not a number.
    """
    rows = []
    for x, clean in zip(run["inputs"], [*run["clean"], None], strict=True):
        pair = []
        for array in (x, clean):
            values = np.full(SHAPE, np.nan) if array is None else np.asarray(array, np.float64)
            pair += [float((values * DIRECTION).sum()), float(np.abs(values).max())]
        rows.append(pair)
    return np.array(rows)


@cache
def _arrays() -> Any:
    return dict(np.load(FILE))


def recorded(class_name: str) -> Iterator[tuple[int, Recorded]]:
    """Key and record of every case of a class, in order."""
    keys, lengths, times, values = (_arrays()[f"{class_name}.{n}"] for n in ("keys", "lengths", "timesteps", "values"))
    at = row = 0
    for key, length in zip(keys.tolist(), lengths.tolist(), strict=True):
        yield key, Recorded(times[at : at + length], values[row : row + length + 1])
        at, row = at + length, row + length + 1


def recorded_difference(ours: dict[str, Any], theirs: Recorded, tolerance: float) -> str:
    """What differs by more than it may, as `scheduler_reference.difference`; empty where nothing does.

    Twice the tolerance is allowed, as the errors of several values add up in a projection.
    """
    allowed = 2 * max(tolerance, 2.0**-24 * ours["largest"])
    if len(ours["timesteps"]) != len(theirs.timesteps):
        return f"{len(ours['timesteps'])} calls, diffusers had {len(theirs.timesteps)}"
    off = float(np.abs(ours["timesteps"] - theirs.timesteps).max())
    if off > TIMESTEP_TOLERANCE:
        return f"timesteps differ by {off:.1e}"
    got = projected(ours)
    for name, column in (("inputs", 0), ("clean", 2)):
        errors = np.abs(got[:, column] - theirs.values[:, column]) / theirs.values[:, column + 1]
        if (errors > allowed).any():  # no figure, no comparison
            return f"{name} at call {int(np.nanargmax(errors))} differ by {np.nanmax(errors):.1e}"
    return ""
