"""Which jobs are accepted, and what they are promised. Pure: times come from the caller.

A job is accepted if its first image, and that of every job accepted before, can be expected to start within `max_wait`
seconds. Expected waits are those of a fluid in which every client with work has its share of the device all the time,
which deficit round robin approximates. A client's waiting work is limited to its share of `max_wait`, with one share
kept free for a newcomer, so that nobody fills the queue alone.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from latentrt.serve.messages import Admitted, RefusedError

from .policy import Policy
from .queue import Client, Group, Line, QueuedJob, State, Weights

Floats = NDArray[np.float64]
# Shares of `max_wait` that are not promised away, as waits cannot be predicted exactly. Less for jobs that have been
# accepted, so that a small error in their prediction does not stop all admission.
SPARE_FOR_NEW, SPARE = 0.15, 0.07
LONGEST_RETRY = 120  # seconds; clients ignore longer ones


@dataclass(frozen=True, slots=True)
class _Flow:
    """The work of one client in one group, in milliseconds: waiting and in slots; and its share of the device."""

    group: Group
    weight: float
    waiting: float
    in_slots: float


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A job whose first image has not started; `ahead`: milliseconds of waiting work before it in its flow."""

    job: QueuedJob
    flow: int
    ahead: float


class Admission:
    """Decides for one policy."""

    def __init__(self, policy: Policy, *, max_wait: float, max_queue: int, client_jobs: int) -> None:
        """Limits: seconds until a job's first image starts; images that wait; jobs of one client."""
        self._policy, self._costs = policy, policy.costs
        self._max_wait, self._max_queue, self._client_jobs = max_wait, max_queue, client_jobs
        self._seen: dict[Client, tuple[float, float]] = {}  # when a client last asked, and its weight

    def admit(self, job: QueuedJob, now: float) -> Admitted:
        """Queue a job in the policy, or raise `RefusedError`."""
        self._seen[job.client] = (now, job.weight)
        self._require_room(job)
        self._require_share(job, now)
        waits = self._waits(now, job)
        wait = waits[job.id][0]
        late = max(expected - (allowed - now) for expected, allowed in waits.values())
        if late > 0:
            raise _busy("too much work waits", late)
        estimate = wait + self._seconds_in_slots(job)
        if job.expires is not None and now + estimate > job.expires:
            raise RefusedError(
                "deadline", f"the deadline is in {job.expires - now:.1f} s, but it would take about {estimate:.1f} s"
            )
        position = self._policy.waiting()
        job.promised = now + self._max_wait
        self._policy.add(job)
        return Admitted(position, wait, estimate)

    def _require_room(self, job: QueuedJob) -> None:
        own = [other for other in self._policy.jobs.values() if other.client.name == job.client.name]
        most = job.client_jobs or self._client_jobs
        if len(own) >= most:
            raise RefusedError(
                "client_busy",
                f"{len(own)} of your jobs are under way: expected at most {most}",
                _retry(min(self._seconds_in_slots(other) for other in own)),
            )
        if (waiting := self._policy.waiting()) + len(job.images) > self._max_queue:
            raise _busy(f"{waiting} images wait: expected at most {self._max_queue}", self._work() / 2000)

    def _require_share(self, job: QueuedJob, now: float) -> None:
        """A client may have its share of `max_wait` waiting, beside a share for a newcomer."""
        self._seen = {client: seen for client, seen in self._seen.items() if now - seen[0] < self._max_wait}
        weights = sum(weight for _, weight in self._seen.values())
        waiting = (image for line in self._policy.lines.values() for image in line.waiting.get(job.client, ()))
        own: float = sum(image.job.cost for image in waiting) / 1000
        excess = own + job.cost * len(job.images) / 1000 - self._max_wait * job.weight / (weights + job.weight)
        if own and excess > 0:
            retry = _retry(excess * weights / job.weight)
            raise RefusedError("busy", f"the server is busy: {own:.1f} s of your work wait, which is your share", retry)

    # --- expected times -----------------------------------------------------------------------------------------------

    def _waits(self, now: float, new: QueuedJob) -> dict[str, tuple[float, float]]:
        """For each job that has not started, and a new one: the seconds until it does, and the time when it must."""
        flows, waiting = self._flows(new)
        starts = _fluid_starts(flows, waiting).tolist()
        sets = _Sets(self._policy, new, now)
        turns = {flow.group.weights: sets.turn(flow.group.weights) for flow in flows}
        first_slots = {group: self._first_slot(group) for group in {flow.group for flow in flows}}
        result = {}
        for entry, start in zip(waiting, starts, strict=True):
            seconds = max(start / 1000, 0.0) + first_slots[entry.job.group]
            expected = turns[entry.job.group.weights].start(seconds)
            spare = (SPARE_FOR_NEW if entry.job is new else SPARE) * self._max_wait
            allowed = (now + self._max_wait if entry.job is new else entry.job.promised) - spare
            result[entry.job.id] = (expected, allowed)
        return result

    def _flows(self, new: QueuedJob) -> tuple[list[_Flow], list[_Waiting]]:
        """The work of all clients, and the jobs that have not started, with a new one."""
        lines = self._policy.lines
        weights = {(group, client): w for group, line in lines.items() for client, w in line.weights().items()}
        weights[new.group, new.client] = new.weight
        places = Counter(client for _, client in weights)
        flows: list[_Flow] = []
        waiting: list[_Waiting] = []
        for (group, client), weight in weights.items():
            line = lines.get(group, Line())
            ahead = 0.0
            for image in (*line.waiting.get(client, ()), *(new.images if (group, client) == _flow_of(new) else ())):
                if image.index == 0 and not image.job.started:
                    waiting.append(_Waiting(image.job, len(flows), ahead))
                ahead += image.job.cost
            held = (image for image in (*line.chosen, *line.running) if image.job.client == client)
            in_slots = sum(image.job.cost * image.calls_left / image.job.calls for image in held)
            flows.append(_Flow(group, weight / places[client], ahead, in_slots))
        return flows, waiting

    def _first_slot(self, group: Group) -> float:
        """Seconds until a slot of a group is free."""
        line = self._policy.lines.get(group)
        if line is None or line.held < self._costs.cap(group):
            return 0.0
        return min(image.calls_left for image in (*line.chosen, *line.running)) * self._call_seconds(group)

    def _call_seconds(self, group: Group) -> float:
        """Seconds from one call of a group to its next, while it is full."""
        shares = self._policy.shares()
        own = shares.get(group, 1.0)
        others = sum(share for other, share in shares.items() if other != group)
        return self._costs.call(group, self._costs.cap(group)) / 1000 * (own + others) / own

    def _seconds_in_slots(self, job: QueuedJob) -> float:
        """Seconds from the start of a job's first image to its last picture."""
        line, cap = self._policy.lines.get(job.group), self._costs.cap(job.group)
        beside = 0 if line is None else line.held + sum(1 for _ in line.all_waiting())
        count = min(cap, beside + len(job.images))
        rounds = math.ceil(len(job.images) / cap)
        shares = self._policy.shares()
        slower = (sum(shares.values()) or 1.0) / shares.get(job.group, sum(shares.values()) or 1.0)
        one = job.calls * self._costs.call(job.group, count) * slower
        return (self._costs.encode(job) + rounds * one + self._costs.decode(job.group, len(job.images))) / 1000

    def _work(self) -> float:
        """Milliseconds of accepted work that has not been done."""
        return sum(_work_left(job) for job in self._policy.jobs.values())

    def work(self) -> float:
        """See `Load.work`."""
        return self._work()


def _flow_of(job: QueuedJob) -> tuple[Group, Client]:
    return job.group, job.client


def _work_left(job: QueuedJob) -> float:
    return sum(job.cost * image.calls_left / job.calls for image in job.images if image.state is not State.GONE)


def _fluid_starts(flows: Sequence[_Flow], waiting: Sequence[_Waiting]) -> Floats:
    """Milliseconds until each job starts, if each flow has its share of the device all the time.

    When a flow has had p milliseconds, another one has had p times the ratio of their weights, or all that it wants.
    An image that does not share its slot starts its own cost before the fluid would have finished it. Flows of other
    LoRA sets of the same model have their time apart.
    """
    weights = np.array([flow.weight for flow in flows])
    works, in_slots = np.array([(flow.waiting, flow.in_slots) for flow in flows]).T
    costs = np.array([entry.job.cost for entry in waiting])
    ahead = np.array([entry.ahead for entry in waiting]) + costs
    own = np.array([entry.flow for entry in waiting])
    groups = {flow.group: i for i, flow in enumerate(flows)}
    numbers = np.array([groups[flow.group] for flow in flows])
    # Slots of its own group are filled as they become free; other groups have theirs to finish as well.
    wanted = works + in_slots * (numbers[own][:, None] != numbers)
    served = np.minimum(wanted, (ahead / weights[own])[:, None] * weights)
    states = [flow.group.weights for flow in flows]
    if len({*states}) > 1:
        together = np.array([[a == b or a.model != b.model for b in states] for a in states])
        served *= together[own]
    starts: Floats = served.sum(1) - costs
    return starts


@dataclass(frozen=True, slots=True)
class _Turn:
    """When a set of LoRAs has the device, in seconds.

    Attributes:
        first: until its next turn begins; 0 during its turn.
        length: of its turns; the first may be shorter.
        first_length: what is left of the turn, or the length of the next one.
        others: from the end of a turn to the next one; 0 where no other set has work.
    """

    first: float = 0.0
    length: float = 1.0
    first_length: float = 0.0
    others: float = 0.0

    def start(self, seconds: float) -> float:
        """When work starts that starts after these seconds of the set's own time."""
        if not self.others:
            return self.first + seconds
        over = seconds - self.first_length
        turns = 0 if over <= 0 else math.ceil(over / self.length)
        return self.first + seconds + turns * self.others


class _Sets:
    """The turns of all sets of LoRAs that have work."""

    def __init__(self, policy: Policy, new: QueuedJob, now: float) -> None:
        self._policy, self._now = policy, now
        self._works: dict[Weights, float] = {}  # seconds
        self._drains: dict[Weights, float] = {}  # seconds until all that runs has finished
        jobs = [*policy.jobs.values(), new]
        if len({job.group.weights for job in jobs} | {*policy.turns.active.values()}) > len(policy.turns.active):
            for job in jobs:
                weights = job.group.weights
                self._works[weights] = self._works.get(weights, 0.0) + _work_left(job) / 1000
                drain = job.calls * policy.costs.call(job.group, policy.costs.cap(job.group)) / 1000
                self._drains[weights] = max(self._drains.get(weights, 0.0), drain)

    def turn(self, weights: Weights) -> _Turn:
        """The turns of one set."""
        model, turns = weights.model, self._policy.turns
        rivals = [w for w in self._works if w.model == model and w != weights]
        if not rivals and turns.active[model] == weights:
            return _Turn()
        swap, length = self._policy.costs.swap_seconds(model), turns.turn(model)
        lengths = {w: min(self._works[w], length) + self._drains[w] + swap for w in rivals}
        others = sum(lengths.values()) + swap
        left = turns.left(model, self._now)
        if (active := turns.active[model]) == weights:
            return _Turn(0.0, length, left, others) if left > 0 else _Turn(others, length, length, others)
        if active in lengths:  # a part of its turn is over
            lengths[active] = min(self._works[active], left) + self._drains[active] + swap
        return _Turn(sum(lengths.values()) + swap, length, length, others)


def _busy(why: str, seconds: float) -> RefusedError:
    return RefusedError("busy", f"the server is busy: {why}", _retry(seconds))


def _retry(seconds: float) -> float:
    return float(min(max(1, math.ceil(seconds)), LONGEST_RETRY))
