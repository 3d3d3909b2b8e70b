"""Clients that ask for more than a device can do, in virtual time, and what has to be true of the outcome."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from support.simulated_device import Ask, FixedCosts, Simulation, group_of

from latentrt.serve.dispatcher.policy import Swap
from latentrt.serve.dispatcher.queue import Group


@dataclass(frozen=True)
class Load:
    """Clients with random asks.

    Attributes:
        times: how many times the capacity they ask for, all together.
        weights: of the clients; each one asks for its share of `times`.
        apart: client i asks for group i alone (of the list, over and over), instead of all groups in turn.
    """

    groups: tuple[Group, ...] = (group_of(64),)
    calls: tuple[int, ...] = (20,)
    clients: int = 8
    images: tuple[int, ...] = (1,)
    weights: tuple[float, ...] = (1.0,)
    times: float = 3.0
    apart: bool = False
    costs: FixedCosts = field(default_factory=FixedCosts)

    def asks(self, seed: int, until: float) -> list[Ask]:
        """At random times."""
        rng = np.random.default_rng(seed)
        mean = np.mean([self.costs.image(group, calls) for group in self.groups for calls in self.calls])
        mean *= np.mean(self.images)
        weights = [self.weights[client % len(self.weights)] for client in range(self.clients)]
        asks = []
        for client, weight in enumerate(weights):
            at = 0.0
            while (at := at + rng.exponential(mean / 1000 / self.times * sum(weights) / weight)) < until:
                group = self.groups[client % len(self.groups) if self.apart else rng.integers(len(self.groups))]
                asks.append(
                    Ask(at, f"c{client}", group, int(rng.choice(self.calls)), int(rng.choice(self.images)), weight)
                )
        return asks


@dataclass(frozen=True)
class Figures:
    """What came out. Shares are useful work of each client over its weight."""

    goodput: float
    jain: float
    longest_wait: float
    longest_promise: float
    estimate_error: float
    swaps: int
    accepted: int
    unstarted: int


def run_load(load: Load, seed: int, until: float = 150.0) -> Figures:
    """Run it."""
    sim = Simulation(load.costs)
    sim.run(load.asks(seed, until), until=until)
    accepted = list(sim.accepted())
    done = [outcome for outcome in accepted if outcome.finished is not None]
    useful = [outcome.ask.images * load.costs.image(outcome.ask.group, outcome.ask.calls) for outcome in done]
    shares = dict.fromkeys((f"c{client}" for client in range(load.clients)), 0.0)
    for outcome, work in zip(done, useful, strict=True):
        shares[outcome.ask.client] += work / outcome.ask.weight
    errors = [abs(o.estimate / (o.finished - o.ask.at) - 1) for o in done if o.finished is not None]
    started = [outcome.started - outcome.ask.at for outcome in accepted if outcome.started is not None]
    unstarted = [until - outcome.ask.at for outcome in accepted if outcome.started is None and not outcome.dropped]
    return Figures(
        goodput=sum(useful) / 1000 / until,
        jain=jain(list(shares.values())),
        longest_wait=max(*started, *unstarted, 0.0),
        longest_promise=max(outcome.wait for outcome in accepted),
        estimate_error=float(np.median(errors)),
        swaps=sum(isinstance(action, Swap) for _, action, _ in sim.actions),
        accepted=len(accepted),
        unstarted=len(unstarted),
    )


def jain(shares: Sequence[float]) -> float:
    """Jain's index: 1 where all are equal, 1/n where one has everything."""
    values = np.array(shares)
    return float(values.sum() ** 2 / (len(values) * (values**2).sum()))


def check_promises(figures: Figures, max_wait: float = 30.0) -> None:
    """Every accepted job starts in time."""
    assert figures.longest_promise <= max_wait
    assert figures.longest_wait <= max_wait, f"a job waited {figures.longest_wait:.1f} s"


def check_load(figures: Figures, *, goodput: float = 0.95, error: float = 0.25) -> None:
    """The device is used, clients have their shares, and what they are told is true."""
    check_promises(figures)
    assert figures.goodput >= goodput, f"goodput {figures.goodput:.3f}"
    assert figures.jain >= 0.95, f"Jain's index {figures.jain:.3f}"
    assert figures.estimate_error <= error, f"median error of estimates {figures.estimate_error:.3f}"
