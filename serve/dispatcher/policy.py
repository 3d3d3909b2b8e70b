"""What a device does next. Pure: no threads, arrays, libraries, HTTP or clock of its own.

Between two UNet calls at most one batch of pictures is decoded and at most one of texts encoded. Deficit round robin
over groups decides which one makes the next call, in proportion to the weights of the clients with work there; deficit
round robin over clients decides who gets a free slot; within a client it is first come, first served.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from .protocols import Costs
from .queue import Client, Group, Image, Line, QueuedJob, State, Weights
from .rotation import Rotation
from .turns import Turns

QUANTUM = 250.0  # milliseconds of device time in a row, for a client of weight 1
GROUPS_OPEN = 4  # groups that may hold slots at a time


@dataclass(frozen=True, slots=True)
class Encode:
    """Encode the texts and pictures of jobs."""

    group: Group
    jobs: tuple[QueuedJob, ...]


@dataclass(frozen=True, slots=True)
class Call:
    """Put images into slots, then make a UNet call for all that have one."""

    group: Group
    joining: tuple[Image, ...]
    images: tuple[Image, ...]


@dataclass(frozen=True, slots=True)
class Decode:
    """Latents of one size to pictures."""

    group: Group
    images: tuple[Image, ...]


@dataclass(frozen=True, slots=True)
class Swap:
    """Change the weights of a model."""

    weights: Weights


@dataclass(frozen=True, slots=True)
class CloseSlots:
    """Give the slots of a group back."""

    group: Group


@dataclass(frozen=True, slots=True)
class Idle:
    """Nothing to do until something changes."""


Action = Encode | Call | Decode | Swap | CloseSlots | Idle


class Policy:
    """The queue of one device, and the rules that it is served by."""

    def __init__(self, models: Iterable[str], costs: Costs) -> None:
        self.costs = costs
        self.jobs: dict[str, QueuedJob] = {}
        self.lines: dict[Group, Line] = {}
        self.turns = Turns(list(models), costs.swap_seconds)
        self._finished: list[Image] = []
        self._groups = Rotation[Group]()
        self.clients: dict[Group, Rotation[Client]] = {}  # whose turn it is in each group
        self._alone: dict[str, QueuedJob] = {}  # jobs beside which nothing else runs
        self._open: list[Group] = []  # groups that hold slots, in the order in which they got them
        self._encoded: tuple[Group, float] | None = None  # since the last call: for whom, and in how many milliseconds

    # --- changes from outside -----------------------------------------------------------------------------------------

    def add(self, job: QueuedJob) -> None:
        """Queue a job."""
        self.jobs[job.id] = job
        if job.alone:
            self._alone[job.id] = job
        self._line(job.group).wait(job.images)

    def go_on(self, job: QueuedJob) -> None:
        """Queue the next pass of a job that has started, before all others of its client."""
        job.started = True
        self.jobs[job.id] = job
        if job.alone:
            self._alone[job.id] = job
        self._line(job.group).wait(reversed(job.images), first=True)

    def remove(self, job: QueuedJob) -> list[Image]:
        """Forget a job, wherever its images are; returns those that were running, whose slots are free now."""
        running = job.of_state(State.RUNNING)
        for image in job.images:
            self._take_out(image)
        self._tidy()
        return running

    def restart(self, images: Iterable[Image]) -> None:
        """Images in slots begin again from their first call, before all others of their client."""
        order = {job: number for number, job in enumerate(self.jobs.values())}
        for image in sorted(images, key=lambda image: (order[image.job], image.index), reverse=True):
            self._line(image.job.group).remove(image)
            image.calls = 0
            image.job.restarted = True
            self._line(image.job.group).wait([image], first=True)

    def expired(self, now: float) -> list[QueuedJob]:
        """Jobs that cannot meet their deadlines any more, even if all of the device's time were theirs."""
        return [
            job
            for job in self.jobs.values()
            if job.expires is not None and now + self._least_seconds(job) > job.expires
        ]

    def _least_seconds(self, job: QueuedJob) -> float:
        calls = max((image.calls_left for image in job.images if image.state.value < State.FINISHED.value), default=0)
        unfinished = job.of_state(State.WAITING, State.CHOSEN, State.RUNNING, State.FINISHED)
        decode = self.costs.decode(job.group, 1) + job.later if unfinished else 0.0
        return (calls * self.costs.call(job.group, 1) + decode) / 1000

    def close_model(self, model: str) -> list[Group]:
        """A model without work is closed; returns the groups whose slots close with it."""
        groups = [group for group in self._open if group.weights.model == model]
        self._open = [group for group in self._open if group not in groups]
        self.turns.reset(model)
        return groups

    # --- what to do next ----------------------------------------------------------------------------------------------

    def next(self, now: float) -> Action:
        """What the device should do now. Report it with `done` before the next question."""
        if self._finished:
            return self._decode()
        waiting = self._waiting_sets()
        busy = {group.weights: True for group, line in self.lines.items() if line.held}
        if (weights := self.turns.due(waiting, busy, now)) is not None:
            active = self.turns.active[weights.model]
            group = next((group for group in self._open if group.weights == active), None)
            return Swap(weights) if group is None else CloseSlots(group)
        return self._serve(now, waiting)

    def _waiting_sets(self) -> list[Weights]:
        """The weights that images wait for. While a job has to run alone, all others have no claim to theirs."""
        if self._alone:
            alone = next(iter(self._alone.values()))
            return [alone.group.weights] if alone.of_state(State.WAITING) else []
        return list({group.weights: None for group, line in self.lines.items() if line.waiting})

    def _serve(self, now: float, waiting: list[Weights]) -> Action:
        joinable = {g: self._joinable(g, waiting, now) for g in self.lines}
        shares = self.shares()
        able = {group: shares[group] for group, line in self.lines.items() if line.held or joinable[group]}
        if not able:
            return Idle()
        group = self._groups.current(able, QUANTUM)
        if group not in self._open:
            if len(self._open) >= GROUPS_OPEN:
                return CloseSlots(next(g for g in self._open if not self._held(g)))
            self._open.append(group)
        line = self.lines[group]
        if joinable[group]:
            self._choose(group, line, now)
        missing = dict.fromkeys(image.job for image in line.chosen if not image.job.encoded)
        # Fewer than were chosen if the cap has been lowered since.
        free = max(self.costs.cap(group) - len(line.running), 0)
        ready = tuple(image for image in line.chosen if image.job.encoded)[:free]
        if missing and not (self._encoded is not None and (ready or line.running)):
            return Encode(group, tuple(self._encodable(group, missing)))
        return Call(group, ready, (*line.running, *ready))

    def _joinable(self, group: Group, waiting: list[Weights], now: float) -> bool:
        """Whether waiting images of a group may get slots now."""
        line = self.lines[group]
        if not line.waiting or not self.turns.may_join(group.weights, waiting, now):
            return False
        if self._alone:
            alone = next(iter(self._alone.values()))
            in_slots = (image for other in self.lines.values() for image in (*other.chosen, *other.running))
            return alone.group == group and all(image.job is alone for image in in_slots)
        if group in self._open:
            # The oldest group drains if a group without slots waits for its own.
            return group != self._open[0] or not self._short_of_slots(now, waiting)
        return len(self._open) < GROUPS_OPEN or any(not self._held(g) for g in self._open)

    def _short_of_slots(self, now: float, waiting: list[Weights]) -> bool:
        """Whether a group waits to hold slots, and none of those that hold them is without work."""
        if len(self._open) < GROUPS_OPEN or any(not self._held(group) for group in self._open):
            return False
        return any(
            line.waiting and group not in self._open and self.turns.may_join(group.weights, waiting, now)
            for group, line in self.lines.items()
        )

    def _choose(self, group: Group, line: Line, now: float) -> None:
        """Give the free slots of a group away: in turn, but first to clients whose promises would be broken."""
        rotation = self.clients.setdefault(group, Rotation[Client]())
        alone, places = next(iter(self._alone.values()), None), self._places()
        while line.waiting and line.held < self.costs.cap(group):
            heads = {client: images[0] for client, images in line.waiting.items()}
            if alone is not None:
                heads = {image.job.client: image for image in alone.of_state(State.WAITING)[:1]}
                if not heads:
                    return
            weights = {client: image.job.weight / places[client] for client, image in heads.items()}
            in_turn = rotation.next({client: image.job.cost for client, image in heads.items()}, weights)
            client = urgent if (urgent := line.urgent(now)) in heads else in_turn
            rotation.spend(client, heads[client].job.cost)
            line.choose(heads[client])

    def _encodable(self, group: Group, jobs: Iterable[QueuedJob]) -> Iterator[QueuedJob]:
        """As many jobs as take no longer than a call, and at least one."""
        left = self.costs.call(group, self.costs.cap(group))
        for number, job in enumerate(jobs):
            left -= self.costs.encode(job)
            if number and left < 0:
                return
            yield job

    def _decode(self) -> Decode:
        group = self._finished[0].job.group
        return Decode(group, tuple(image for image in self._finished if image.job.group == group))

    # --- what has been done -------------------------------------------------------------------------------------------

    def done(self, action: Action, now: float, took: float) -> None:
        """An action has been carried out, in `took` milliseconds of device time."""
        match action:
            case Encode(group, jobs):
                # Charged with the call that follows, so that the turn does not pass to a group that encodes as well.
                self._encoded = group, took
                for job in jobs:
                    job.encoded = True
            case Call(group, joining, images):
                if self._encoded is not None:
                    self._groups.spend(*self._encoded)
                    self._encoded = None
                self._groups.spend(group, took)
                self._called(group, joining, images)
            case Decode(group, images):
                self._groups.spend(group, took)
                for image in images:
                    self._take_out(image)
            case Swap(weights):
                self.turns.changed(weights, now)
            case CloseSlots(group):
                self._open.remove(group)
        self._tidy()

    def _called(self, group: Group, joining: Iterable[Image], images: Iterable[Image]) -> None:
        line = self.lines[group]
        for image in joining:
            line.chosen.remove(image)
            line.running.append(image)
            image.state, image.job.started = State.RUNNING, True
        for image in images:
            image.calls += 1
            if not image.calls_left:
                line.remove(image)
                image.state = State.FINISHED
                self._finished.append(image)

    # --- views --------------------------------------------------------------------------------------------------------

    def shares(self) -> dict[Group, float]:
        """Each group's share of the device: its clients' weights, divided over the groups where they have work."""
        places = self._places()
        return {
            group: sum(weight / places[client] for client, weight in line.weights().items())
            for group, line in self.lines.items()
        }

    def _places(self) -> Counter[Client]:
        """In how many groups each client has work."""
        return Counter(client for line in self.lines.values() for client in line.weights())

    def waiting(self) -> int:
        """Images that wait for a slot."""
        return sum(len(images) for line in self.lines.values() for images in line.waiting.values())

    def running(self) -> int:
        """Images that have a slot, or are being decoded."""
        return sum(line.held for line in self.lines.values()) + len(self._finished)

    def _line(self, group: Group) -> Line:
        return self.lines.setdefault(group, Line())

    def _held(self, group: Group) -> int:
        return self.lines[group].held if group in self.lines else 0

    def _take_out(self, image: Image) -> None:
        """The image is gone, and so is its job with the last one."""
        job = image.job
        if image.state is State.FINISHED:
            self._finished.remove(image)
        elif (line := self.lines.get(job.group)) is not None:
            line.remove(image)
        image.state = State.GONE
        if all(other.state is State.GONE for other in job.images):
            self.jobs.pop(job.id, None)
            self._alone.pop(job.id, None)

    def _tidy(self) -> None:
        """Forget groups without work."""
        self.lines = {group: line for group, line in self.lines.items() if line}
        self.clients = {group: rotation for group, rotation in self.clients.items() if group in self.lines}
