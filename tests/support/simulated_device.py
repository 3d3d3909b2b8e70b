"""A device in virtual time: the dispatcher's policy and admission, with a clock that work moves forward."""

import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from latentrt.runtime.protocols import Bucket
from latentrt.serve.dispatcher.admission import Admission
from latentrt.serve.dispatcher.policy import Action, Call, CloseSlots, Decode, Encode, Idle, Policy, Swap
from latentrt.serve.dispatcher.queue import Client, Group, QueuedJob, Weights
from latentrt.serve.messages import RefusedError


@dataclass(frozen=True)
class FixedCosts:
    """Costs of a device whose calls take `base` and a part for each image, in proportion to the latents' area."""

    base: float = 20.0
    per_image: float = 10.0
    swap: float = 0.4
    caps: int = 8

    def cap(self, _group: Group) -> int:
        return self.caps

    def call(self, group: Group, count: int) -> float:
        return (self.base + self.per_image * count) * group.bucket.height * group.bucket.width / 4096

    def encode(self, _job: QueuedJob) -> float:
        return 5.0

    def decode(self, group: Group, count: int) -> float:
        return 8.0 * count * group.bucket.height * group.bucket.width / 4096

    def swap_seconds(self, _model: str) -> float:
        return self.swap

    def image(self, group: Group, calls: int) -> float:
        """Milliseconds of an image in full batches."""
        cap = self.cap(group)
        return 5.0 + calls * self.call(group, cap) / cap + self.decode(group, 1)


def milliseconds(action: Action, costs: FixedCosts) -> float:
    """What an action takes."""
    match action:
        case Encode(_, jobs):
            return sum(map(costs.encode, jobs))
        case Call(group, _, images):
            return costs.call(group, len(images))
        case Decode(group, images):
            return costs.decode(group, len(images))
        case Swap(weights):
            return 1000 * costs.swap_seconds(weights.model)
    assert isinstance(action, CloseSlots)
    return 0.0


def group_of(side: int = 64, loras: str = "", model: str = "m") -> Group:
    return Group(Weights(model, ((loras, 1.0),) if loras else ()), Bucket(2, side, side, 77))


@dataclass(frozen=True)
class Ask:
    """A job that a client submits at a time."""

    at: float
    client: str
    group: Group
    calls: int
    images: int = 1
    weight: float = 1.0
    deadline: float | None = None


@dataclass(eq=False)
class Outcome:
    """What became of it, in seconds of virtual time."""

    ask: Ask
    refused: RefusedError | None = None
    wait: float = 0.0
    estimate: float = 0.0
    started: float | None = None
    finished: float | None = None
    dropped: bool = False


@dataclass
class Simulation:
    """Runs asks through a policy."""

    costs: FixedCosts
    models: Sequence[str] = ("m",)
    max_wait: float = 30.0
    policy: Policy = field(init=False)
    now: float = 0.0
    busy: float = 0.0
    actions: list[tuple[float, Action, float]] = field(default_factory=list)
    outcomes: dict[str, Outcome] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.policy = Policy(self.models, self.costs)
        self.admission = Admission(self.policy, max_wait=self.max_wait, max_queue=10_000, client_jobs=10_000)

    def submit(self, ask: Ask) -> Outcome:
        identity = str(len(self.outcomes))
        outcome = self.outcomes[identity] = Outcome(ask)
        job = QueuedJob(
            identity,
            ask.group,
            Client(ask.client),
            ask.weight,
            ask.calls,
            self.costs.image(ask.group, ask.calls),
            expires=None if ask.deadline is None else self.now + ask.deadline,
        ).with_images(ask.images)
        try:
            admitted = self.admission.admit(job, self.now)
            outcome.wait, outcome.estimate = admitted.wait, admitted.estimate
        except RefusedError as error:
            outcome.refused = error
        return outcome

    def run(self, asks: Sequence[Ask], *, until: float, each: Callable[[Action], None] = lambda _: None) -> None:
        """Submit all asks at their times, and work until the end."""
        waiting = [(ask.at, number, ask) for number, ask in enumerate(asks)]
        heapq.heapify(waiting)
        while True:
            while waiting and waiting[0][0] <= self.now:
                self.submit(heapq.heappop(waiting)[2])
            for job in self.policy.expired(self.now):
                self.policy.remove(job)
                self.outcomes[job.id].dropped = True
            action = self.policy.next(self.now)
            each(action)
            if isinstance(action, Idle):
                if not waiting or waiting[0][0] >= until:
                    return
                self.now = waiting[0][0]
                continue
            took = self.took(action)
            self.actions.append((self.now, action, took))
            self._note_starts(action)
            if isinstance(action, Encode | Call | Decode):
                self.busy += took
            self.now += took / 1000
            decoded = [image.job for image in action.images] if isinstance(action, Decode) else []
            self.policy.done(action, self.now, took)
            for job in decoded:
                if job.id not in self.policy.jobs:
                    self.outcomes[job.id].finished = self.now
            if self.now >= until:
                return

    def took(self, action: Action) -> float:
        """Milliseconds of an action; tests may put another one in its place."""
        return milliseconds(action, self.costs)

    def _note_starts(self, action: Action) -> None:
        if isinstance(action, Call):
            for image in action.joining:
                outcome = self.outcomes[image.job.id]
                if outcome.started is None:
                    outcome.started = self.now

    def accepted(self) -> Iterator[Outcome]:
        return (outcome for outcome in self.outcomes.values() if outcome.refused is None)
