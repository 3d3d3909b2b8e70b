"""When jobs can be expected to start and to finish. Pure: times come from the caller.

Within a group images take the slots as these become free, in the order in which deficit round robin gives them to
clients. Groups share the device in proportion to their weights while they have work. Sets of LoRAs take turns.
"""

import math
from collections import Counter
from dataclasses import dataclass, field
from heapq import heapify, heapreplace

from .policy import Policy
from .queue import Client, Group, Image, Line, QueuedJob, State, Weights


class Forecast:
    """What is expected if a new job is accepted.

    Attributes:
        starts: the other jobs that have not started, in how many seconds the first image of each one does, and the
            pause of its set.
        start: seconds until the first image of the new job starts, if clients that wait go on to ask for more, and
            sets of LoRAs that are waited for use all of their turns.
        finish: seconds until its last picture, if these turns are as long as their work.
        pause: seconds between turns of its set of LoRAs; 0 where no other set has work.
    """

    def __init__(self, policy: Policy, new: QueuedJob, now: float) -> None:
        queues = _queues(policy, new)
        sets = _Sets(policy, queues, now)
        self.starts: list[tuple[QueuedJob, float, float]] = []
        self.start = self.finish = self.pause = 0.0
        for queue in queues:
            turn, full_turn = sets.turn(queue.group.weights), sets.turn(queue.group.weights, go_on=True)
            rivals = [other for other in queues if other is not queue and _at_once(queue.group, other.group)]
            for image, calls in queue.starts:
                if image.job is not new:
                    self.starts.append((image.job, turn.start(queue.seconds(calls, rivals)), turn.others))
                    continue
                in_slot = queue.seconds(calls + new.calls, rivals) - queue.seconds(calls, rivals)
                seconds = queue.seconds(calls + queue.newcomers, rivals, go_on=True)
                if image.index == 0:
                    self.start, self.pause = full_turn.start(seconds), full_turn.others
                self.finish = max(self.finish, turn.start(seconds) + in_slot)
        self.finish += (policy.costs.encode(new) + policy.costs.decode(new.group, 1)) / 1000
        self.finish += new.later * len(new.images) / 1000


def work_left(job: QueuedJob) -> float:
    """Milliseconds of a job that have not been done."""
    return sum(
        job.later + job.cost * image.calls_left / job.calls for image in job.images if image.state is not State.GONE
    )


# --- groups -----------------------------------------------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class _Queue:
    """One group.

    Attributes:
        share: of the device, in proportion to that of others.
        unit: milliseconds from one of its calls to the next, if it had the device alone, with encodes and decodes.
        starts: images whose starts matter, and after how many calls of the group that is.
        calls: until all of its work is done.
        longest: calls of the image that has the most.
        waits: whether images wait.
        newcomers: calls for images that clients who wait now may ask for later, and get before a new job.
    """

    group: Group
    share: float = 0.0
    unit: float = 0.0
    starts: list[tuple[Image, int]] = field(default_factory=list)
    calls: int = 0
    longest: int = 0
    waits: bool = False
    newcomers: float = 0.0

    def seconds(self, calls: float, rivals: list["_Queue"], *, go_on: bool = False) -> float:
        """Seconds until it has made so many calls, beside others; `go_on`: those where images wait do not run out."""
        others = 0.0
        for rival in rivals:
            their = calls * self.unit * rival.share / self.share
            others += their if go_on and rival.waits else min(rival.calls * rival.unit, their)
        return (calls * self.unit + others) / 1000


def _at_once(one: Group, other: Group) -> bool:
    """Whether two groups can have images in slots at the same time."""
    return one.weights == other.weights or one.weights.model != other.weights.model


def _queues(policy: Policy, new: QueuedJob) -> list[_Queue]:
    """All groups with work, with a new job."""
    lines = policy.lines if new.group in policy.lines else {**policy.lines, new.group: Line()}
    weights = {group: line.weights() for group, line in lines.items()}
    weights[new.group][new.client] = new.weight
    places = Counter(client for clients in weights.values() for client in clients)
    queues = []
    for group, line in lines.items():
        shares = {client: weight / places[client] for client, weight in weights[group].items()}
        queue = _Queue(group, share=sum(shares.values()), waits=bool(line.waiting))
        if group == new.group:
            queue.newcomers = _newcomers(line, shares, new) / policy.costs.cap(group)
        _fill(queue, policy, line, _in_order(policy, group, line, shares, new), new)
        queues.append(queue)
    return queues


def _newcomers(line: Line, shares: dict[Client, float], new: QueuedJob) -> float:
    """Calls of images that other clients are given before a new job, beyond those that wait, if they ask for more."""
    own = sum(image.job.cost for image in (*line.waiting.get(new.client, ()), *new.images))
    calls = 0.0
    for client, images in line.waiting.items():
        if client != new.client:
            more = own / shares[new.client] * shares[client] - sum(image.job.cost for image in images)
            calls += max(more, 0.0) * images[-1].job.calls / images[-1].job.cost
    return calls


def _in_order(policy: Policy, group: Group, line: Line, shares: dict[Client, float], new: QueuedJob) -> list[Image]:
    """The waiting images of a group, in the order in which they get slots: round by round, as the rotation will."""
    waiting = {client: list(images) for client, images in line.waiting.items()}
    if group == new.group:
        waiting[new.client] = [*waiting.get(new.client, ()), *new.images]
    deficits = policy.clients[group].deficits() if group in policy.clients else {}
    quantum = max((images[0].job.cost for images in waiting.values()), default=0.0)
    tagged: list[tuple[int, int, Image]] = []
    for client in {**deficits, **waiting}:
        spent = -deficits.get(client, 0.0)
        for image in waiting.get(client, ()):
            spent += image.job.cost
            turn = max(0, math.ceil(spent / (quantum * shares[client]) - 1e-9))
            tagged.append((turn, len(tagged), image))
    tagged.sort()
    return [image for _, _, image in tagged]


def _fill(queue: _Queue, policy: Policy, line: Line, waiting: list[Image], new: QueuedJob) -> None:
    """Give the slots to the waiting images, each one when the first slot is free."""
    costs, group = policy.costs, queue.group
    cap = costs.cap(group)
    in_slots = [*line.running, *line.chosen]
    free = sorted(image.calls_left for image in in_slots)[-cap:]
    free += [0] * (cap - len(free))
    heapify(free)
    for image in waiting:
        start = free[0]
        heapreplace(free, start + image.job.calls)
        if (image.index == 0 and not image.job.started) or (image.job is new and image.index == len(new.images) - 1):
            queue.starts.append((image, start))
    queue.calls = max(free)
    queue.longest = max(image.job.calls for image in (*in_slots, *waiting))
    count = min(cap, len(in_slots) + len(waiting))
    beside = calls = 0.0  # milliseconds of encoding and decoding, and the calls that they are for
    call = costs.call(group, cap) / cap
    for image in waiting or in_slots:
        beside += image.job.cost - image.job.calls * call
        calls += image.job.calls
    queue.unit = costs.call(group, count) + count * max(beside, 0.0) / calls


# --- sets of LoRAs ----------------------------------------------------------------------------------------------------


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

    def __init__(self, policy: Policy, queues: list[_Queue], now: float) -> None:
        self._policy, self._now = policy, now
        self._works: dict[Weights, float] = {}  # seconds
        self._drains: dict[Weights, float] = {}  # seconds until all that runs has finished
        self._waits = {queue.group.weights for queue in queues if queue.waits}
        for queue in queues:
            weights = queue.group.weights
            self._works[weights] = self._works.get(weights, 0.0) + queue.calls * queue.unit / 1000
            self._drains[weights] = max(self._drains.get(weights, 0.0), queue.longest * queue.unit / 1000)

    def turn(self, weights: Weights, *, go_on: bool = False) -> _Turn:
        """The turns of one set; `go_on`: sets that images wait for use all of theirs."""
        model, turns = weights.model, self._policy.turns
        rivals = [w for w in self._works if w.model == model and w != weights]
        if not rivals and turns.active[model] == weights:
            return _Turn()
        swap, length = self._policy.costs.swap_seconds(model), turns.turn(model)
        works = {w: math.inf if go_on and w in self._waits else self._works[w] for w in rivals}
        lengths = {w: min(works[w], length) + self._drains[w] + swap for w in rivals}
        others = sum(lengths.values()) + swap
        left = turns.left(model, self._now)
        if (active := turns.active[model]) == weights:
            return _Turn(0.0, length, left, others) if left > 0 else _Turn(others, length, length, others)
        if active in lengths:  # a part of its turn is over
            lengths[active] = min(works[active], left) + self._drains[active] + swap
        return _Turn(sum(lengths.values()) + swap, length, length, others)
