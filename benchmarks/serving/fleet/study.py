"""Two studies of a fleet: more replicas for more jobs at one load, and more replicas for the same jobs."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
from tqdm import tqdm

from latentrt.serve.settings.table import DEFAULTS

from .call_times import CallTimes
from .simulation import ROUTERS, Outcome, simulate
from .traces import KINDS, trace

REPLICAS = (1, 2, 4, 8, 16, 32, 64)
# For the same jobs: from half as many replicas as full batches need, up to four times as many.
DEMAND, AROUND = 16, (8, 12, 16, 18, 20, 24, 32, 64)
PERCENTILES = (50, 90, 99)
FEW = 4  # replicas; fewer than these have several traces


@dataclass(frozen=True, slots=True)
class Case:
    """One run. `rate`: jobs a second of the whole fleet."""

    study: str
    trace: str
    router: str
    replicas: int
    rate: float


@dataclass(frozen=True, slots=True)
class Plan:
    """What is simulated, but for the call times.

    Attributes:
        steps: UNet calls of an image, one of these by lot.
        load: of each replica in the study of growth; 1 is full batches all the time.
        replicas: numbers of replicas of the study of growth.
        around: numbers of replicas for the jobs that `DEMAND` replicas can just do.
        seconds: of each trace.
        price: of a replica and hour, until the last picture.
        max_wait: of a job for its first call, in seconds; shorter than a server's default, as traces are short.
    """

    steps: tuple[int, ...] = (20,)
    load: float = 0.8
    replicas: tuple[int, ...] = REPLICAS
    around: tuple[int, ...] = AROUND
    seconds: float = 60.0
    seed: int = 1
    price: float = 1.0
    max_batch: int = DEFAULTS.max_batch
    max_wait: float = 10.0

    def capacity(self, times: CallTimes) -> float:
        """Jobs a second of one replica in full batches."""
        return 1 / float(np.mean([times.image_seconds(calls, self.max_batch) for calls in self.steps]))

    def cases(self, times: CallTimes) -> Iterator[Case]:
        """All runs."""
        capacity = self.capacity(times)
        for kind in KINDS:
            for router in ROUTERS:
                for count in self.replicas:
                    yield Case("growth", kind, router, count, self.load * capacity * count)
            for router in ("random", "least work"):
                for count in self.around:
                    yield Case("same jobs", kind, router, count, capacity * DEMAND)


def run_all(times: CallTimes, plan: Plan) -> list[dict[str, Any]]:
    """The figures of all cases, in their order; on all cores."""
    cases = list(plan.cases(times))
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        found = pool.map(partial(figures, times, plan), cases)
        return list(tqdm(found, total=len(cases), disable=None, leave=False))


def figures(times: CallTimes, plan: Plan, case: Case) -> dict[str, Any]:
    """One case: seconds of latency, the share of refused jobs, and what a thousand pictures cost.

    Few replicas have few jobs: for these, traces of several seeds are taken together.
    """
    seeds = range(plan.seed, plan.seed + max(1, FEW // case.replicas))
    outcomes = [_outcome(times, plan, case, seed) for seed in seeds]
    latency = np.concatenate([outcome.latency for outcome in outcomes])
    answered = latency[~np.isnan(latency)]
    hours = case.replicas * sum(outcome.end for outcome in outcomes) / 3600
    return {
        **asdict(case),
        "jobs": len(latency),
        "refused": 1 - len(answered) / len(latency),
        **dict(zip(("p50", "p90", "p99"), map(float, np.percentile(answered, PERCENTILES)), strict=True)),
        "cost": plan.price * hours / len(answered) * 1000,
        "work": float(np.concatenate([outcome.work for outcome in outcomes]).mean()),
        "busy": float(np.mean([outcome.busy for outcome in outcomes])),
        "images": float(np.mean([outcome.images for outcome in outcomes])),
    }


def _outcome(times: CallTimes, plan: Plan, case: Case, seed: int) -> Outcome:
    jobs = trace(case.trace, case.rate, plan.seconds, seed, plan.steps)
    options: dict[str, Any] = {"max_batch": plan.max_batch, "max_wait": plan.max_wait, "seed": seed}
    return simulate(times, jobs, case.replicas, case.router, **options)


def of(found: Sequence[dict[str, Any]], **wanted: Any) -> list[dict[str, Any]]:
    """The runs with these facts."""
    return [run for run in found if all(run[name] == value for name, value in wanted.items())]
