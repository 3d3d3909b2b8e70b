"""Replicas in virtual time: each has the dispatcher's own policy and admission, and a device that takes given times.

A router sends each job to one replica, whose answer holds: what it refuses is not tried elsewhere.
"""

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from latentrt.serve.dispatcher.admission import Admission
from latentrt.serve.dispatcher.policy import Action, Call, Decode, Encode, Idle, Policy
from latentrt.serve.dispatcher.queue import Client, QueuedJob
from latentrt.serve.messages import RefusedError
from latentrt.serve.settings.table import DEFAULTS

from .call_times import GROUP, CallTimes, KnownCosts
from .traces import Trace


class Replica:
    """A server with one device."""

    def __init__(self, costs: KnownCosts, *, max_wait: float, client_jobs: int) -> None:
        self.policy = Policy([GROUP.weights.model], costs)
        self._admission = Admission(
            self.policy, max_wait=max_wait, max_queue=DEFAULTS.max_queue, client_jobs=client_jobs
        )
        self.action: Action = Idle()  # what its device does now
        self._work: float | None = None

    def admit(self, job: QueuedJob, now: float) -> bool:
        """Whether it takes a job."""
        self._work = None
        try:
            self._admission.admit(job, now)
        except RefusedError:
            return False
        return True

    def begin(self, now: float) -> float | None:
        """Begin what is next; returns when that is done, or None where there is nothing to do."""
        self.action = self.policy.next(now)
        return None if isinstance(self.action, Idle) else now + _milliseconds(self.action, self.policy) / 1000

    def end(self, now: float, took: float) -> Sequence[QueuedJob]:
        """The action is done; returns the jobs that have finished with it."""
        self._work = None
        decoded = [image.job for image in self.action.images] if isinstance(self.action, Decode) else []
        self.policy.done(self.action, now, took)
        return [job for job in decoded if job.id not in self.policy.jobs]

    def work(self) -> float:
        """Milliseconds of device time that were accepted and are not done, as /metrics has it."""
        if self._work is None:
            self._work = self._admission.work()
        return self._work


def _milliseconds(action: Action, policy: Policy) -> float:
    match action:
        case Encode(_, jobs):
            return sum(map(policy.costs.encode, jobs))
        case Call(group, _, images):
            return policy.costs.call(group, len(images))
        case Decode(group, images):
            return policy.costs.decode(group, len(images))
    return 0.0


# --- routing ----------------------------------------------------------------------------------------------------------

Router = Callable[[Sequence[Replica], int, np.random.Generator], int]  # (replicas, number of the job, rng) -> replica


def _random(replicas: Sequence[Replica], _: int, rng: np.random.Generator) -> int:
    return int(rng.integers(len(replicas)))


def _round_robin(replicas: Sequence[Replica], number: int, _: np.random.Generator) -> int:
    return number % len(replicas)


def _two_choices(replicas: Sequence[Replica], _: int, rng: np.random.Generator) -> int:
    """Of two at random the one with fewer jobs, as Ray Serve does."""
    if len(replicas) == 1:
        return 0
    pair = rng.choice(len(replicas), 2, replace=False)
    return int(min(pair, key=lambda number: len(replicas[number].policy.jobs)))


def _least_work(replicas: Sequence[Replica], _: int, rng: np.random.Generator) -> int:
    """The one with the least device time ahead, as a front end does with its devices; ties by lot."""
    work = np.array([replica.work() for replica in replicas])
    return int(rng.choice(np.flatnonzero(work == work.min())))


ROUTERS: dict[str, Router] = {
    "random": _random,
    "round robin": _round_robin,
    "two choices": _two_choices,
    "least work": _least_work,
}


# --- a run ------------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Outcome:
    """What became of a trace.

    Attributes:
        latency: seconds from arrival to the picture, (n,); NaN where it was refused.
        refused: (n,).
        replicas: which one each job was sent to, (n,).
        work: seconds of device time ahead of a replica, averaged over replicas, when each job arrived, (n,).
        busy: the share of the trace's length that devices worked, averaged over replicas.
        images: in a UNet call, on average.
        end: seconds until the last picture, or the end of the trace.
    """

    latency: NDArray[np.float64]
    refused: NDArray[np.bool_]
    replicas: NDArray[np.int64]
    work: NDArray[np.float64]
    busy: float = 0.0
    images: float = 0.0
    end: float = 0.0


@dataclass(eq=False)
class _Run:
    """The state of a run."""

    trace: Trace
    replicas: list[Replica]
    outcome: Outcome
    events: list[tuple[float, int, float]] = field(default_factory=list)  # end of an action, replica, its beginning
    busy: float = 0.0
    calls: int = 0
    images: int = 0


def simulate(
    times: CallTimes,
    trace: Trace,
    replicas: int,
    router: str,
    *,
    seed: int = 0,
    max_batch: int = DEFAULTS.max_batch,
    max_wait: float = DEFAULTS.max_wait,
    client_jobs: int = DEFAULTS.client_jobs,
) -> Outcome:
    """Play a trace, and wait for the last picture. Equal arguments have equal outcomes."""
    costs, count = times.costs(max_batch), len(trace.at)
    fleet = [Replica(costs, max_wait=max_wait, client_jobs=client_jobs) for _ in range(replicas)]
    outcome = Outcome(np.full(count, np.nan), np.zeros(count, bool), np.zeros(count, np.int64), np.zeros(count))
    run, rng, route = _Run(trace, fleet, outcome), np.random.default_rng(seed), ROUTERS[router]
    for number, at in enumerate(trace.at):
        _advance(run, float(at))
        outcome.work[number] = sum(replica.work() for replica in fleet) / 1000 / replicas
        chosen = outcome.replicas[number] = route(fleet, number, rng)
        job = _job(costs, number, int(trace.calls[number]), f"c{trace.clients[number]}")
        outcome.refused[number] = not fleet[chosen].admit(job, float(at))
        if isinstance(fleet[chosen].action, Idle):
            _begin(run, chosen, float(at))
    _advance(run, float("inf"))
    outcome.end = max(trace.seconds, float(np.max(trace.at + outcome.latency, where=~outcome.refused, initial=0.0)))
    outcome.busy = run.busy / trace.seconds / replicas
    outcome.images = run.images / max(run.calls, 1)
    return outcome


def _job(costs: KnownCosts, number: int, calls: int, client: str) -> QueuedJob:
    job = QueuedJob(str(number), GROUP, Client(client), 1.0, calls, costs.image(GROUP, calls)).with_images(1)
    job.cost += costs.encode(job)
    return job


def _advance(run: _Run, until: float) -> None:
    """Carry out what ends before a time."""
    while run.events and run.events[0][0] <= until:
        now, number, began = heapq.heappop(run.events)
        for job in run.replicas[number].end(now, 1000 * (now - began)):
            run.outcome.latency[int(job.id)] = now - run.trace.at[int(job.id)]
        _begin(run, number, now)


def _begin(run: _Run, number: int, now: float) -> None:
    replica = run.replicas[number]
    if (end := replica.begin(now)) is None:
        return
    if isinstance(replica.action, Call):
        run.calls += 1
        run.images += len(replica.action.images)
    run.busy += max(min(end, run.trace.seconds) - now, 0.0)
    heapq.heappush(run.events, (end, number, now))
