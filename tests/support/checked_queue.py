"""A policy that is driven step by step, with everything checked that must hold at every step."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from support.simulated_device import FixedCosts, milliseconds

from latentrt.serve.dispatcher.admission import Admission
from latentrt.serve.dispatcher.policy import GROUPS_OPEN, Action, Call, CloseSlots, Decode, Encode, Idle, Policy, Swap
from latentrt.serve.dispatcher.queue import Client, Group, Image, QueuedJob, State
from latentrt.serve.messages import RefusedError

PATIENCE = 100  # images that may get slots of a group before the first one of a client that waits there


@dataclass(frozen=True, eq=False)
class ChangingCosts(FixedCosts):
    """Costs whose cap of a group falls when memory runs out; `texts`: milliseconds to encode those of a job."""

    texts: float = 5.0
    limits: dict[Group, int] = field(default_factory=dict)

    def encode(self, _job: QueuedJob) -> float:
        return self.texts

    def cap(self, group: Group) -> int:
        return min(self.caps, self.limits.get(group, self.caps))


@dataclass
class CheckedQueue:
    """Policy and admission of one device with a clock; asserts after each action."""

    models: Sequence[str] = ("m", "n")
    max_wait: float = 1e6
    costs: ChangingCosts = field(default_factory=lambda: ChangingCosts(caps=3))
    now: float = 0.0
    jobs: dict[str, QueuedJob] = field(default_factory=dict)
    ended: list[str] = field(default_factory=list)
    slots: dict[Group, list[Image]] = field(default_factory=dict)
    passed_over: dict[Image, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.policy = Policy(self.models, self.costs)
        self.admission = Admission(self.policy, max_wait=self.max_wait, max_queue=10_000, client_jobs=10_000)
        self.encodes = self.decodes = 0  # since the last call
        self.left_since_call = False  # whether jobs that were about to call have left

    # --- from outside ---------------------------------------------------------------------------------------------

    def submit(
        self,
        client: str,
        group: Group,
        calls: int,
        *,
        images: int = 1,
        weight: float = 1.0,
        deadline: float | None = None,
        alone: bool = False,
    ) -> QueuedJob | None:
        """A job, None if it is refused."""
        expires = None if deadline is None else self.now + deadline
        cost = self.costs.image(group, calls)
        identity = str(len(self.jobs))
        job = QueuedJob(identity, group, Client(client), weight, calls, cost, expires=expires, alone=alone)
        self.jobs[identity] = job.with_images(images)
        try:
            self.admission.admit(job, self.now)
        except RefusedError:
            self.ended.append(identity)
            assert identity not in self.policy.jobs
            return None
        return job

    def cancel(self, job: QueuedJob) -> None:
        """Its slots are free, and nothing of it is left."""
        if job.id not in self.policy.jobs:
            return
        in_slots = [image for image in self.slots.get(job.group, []) if image.job is job]
        left = self.policy.remove(job)
        assert set(left) == set(in_slots), "the images whose slots are free are those that had slots"
        self._leave(job.group, in_slots)
        self.left_since_call = True
        self.ended.append(job.id)
        self.check()

    def expire(self) -> None:
        """Drop what cannot meet its deadline."""
        for job in self.policy.expired(self.now):
            self.cancel(job)

    # --- actions --------------------------------------------------------------------------------------------------

    def step(self, *, fails: bool = False, meanwhile: Callable[[], object] = lambda: None) -> Action:
        """The next action, carried out or failed; `meanwhile`: what comes from other threads while it runs."""
        self.expire()
        action = self.policy.next(self.now)
        self._check_action(action)
        if isinstance(action, Idle):
            return action
        took = milliseconds(action, self.costs)
        self.now += took / 1000
        meanwhile()
        if fails and isinstance(action, Call):
            self._fail(action)
        else:
            decoded = [image.job for image in action.images] if isinstance(action, Decode) else []
            self._carry_out(action)
            self.policy.done(action, self.now, took)
            self.ended += {job.id for job in decoded if job.id not in self.policy.jobs}
        self.check()
        return action

    def _fail(self, action: Call) -> None:
        """A call failed: its images begin again once, their jobs fail after that."""
        self._leave(action.group, list(action.images))
        self.left_since_call = True
        for job in {image.job.id: image.job for image in action.images if image.job.restarted}.values():
            self.policy.remove(job)
            self.ended.append(job.id)
        self.policy.restart([image for image in action.images if image.state is not State.GONE])

    def _carry_out(self, action: Action) -> None:
        if isinstance(action, Call):
            held = self.slots.setdefault(action.group, [])
            held += action.joining
            self._leave(action.group, [image for image in action.images if image.calls_left == 1])

    def _leave(self, group: Group, images: Sequence[Image]) -> None:
        self.slots[group] = [image for image in self.slots.get(group, []) if image not in images]

    def finish(self, most: int = 20_000) -> None:
        """Work until all is done, which it must be."""
        for _ in range(most):
            if isinstance(self.step(), Idle):
                assert not self.policy.jobs, "nothing is done although jobs wait"
                return
        raise AssertionError("the work does not end")

    # --- what must hold -------------------------------------------------------------------------------------------

    def _check_action(self, action: Action) -> None:
        match action:
            case Idle():
                self._check_idle()
            case Encode(group, jobs):
                assert jobs
                assert all(job.id in self.policy.jobs and not job.encoded for job in jobs)
                assert self.policy.turns.active[group.weights.model] == group.weights, "encoded under other weights"
                self.encodes += 1
                held_up = any(self.slots.values()) and self.encodes > 1 and not self.left_since_call
                assert not held_up, "encodes hold running images up"
            case Call(group, joining, images):
                self._check_call(group, joining, images)
            case Decode(group, images):
                assert images
                assert all(image.state is State.FINISHED and image.job.group == group for image in images)
                self.decodes += 1
                assert self.decodes <= 1 or self.left_since_call, "decodes hold running images up"
            case Swap(weights):
                assert weights != self.policy.turns.active[weights.model]
                held = [group for group, images in self.slots.items() if images]
                assert all(group.weights.model != weights.model for group in held), "swapped under running images"
            case CloseSlots(group):
                assert not self.slots.get(group), "slots closed under running images"

    def _check_call(self, group: Group, joining: Sequence[Image], images: Sequence[Image]) -> None:
        held = self.slots.get(group, [])
        assert images, "an empty call"
        assert set(images) == {*held, *joining}, "a call is for all that have slots, and no others"
        assert not set(held) & set(joining)
        assert len(set(images)) == len(images)
        if joining:
            assert len(images) <= self.costs.cap(group), "more images than the cap"
        assert all(image.job.encoded and image.job.id in self.policy.jobs for image in images)
        assert self.policy.turns.active[group.weights.model] == group.weights, "called under other weights"
        holders = [other for other, running in self.slots.items() if running and other != group]
        assert len(holders) < GROUPS_OPEN, "too many groups hold slots"
        if any(image.job.alone for image in images):
            running = {image.job for others in self.slots.values() for image in others} | {i.job for i in images}
            assert len(running) == 1, "a job that runs alone has company"
        assert not any(job.expires is not None and self._late(job) for job in {i.job for i in images}), "late work runs"
        self._check_patience(group, joining)
        self.encodes = self.decodes = 0
        self.left_since_call = False

    def _late(self, job: QueuedJob) -> bool:
        calls = max((i.calls_left for i in job.images if i.state not in (State.FINISHED, State.GONE)), default=0)
        assert job.expires is not None
        return self.now + calls * self.costs.call(job.group, 1) / 1000 > job.expires

    def _check_patience(self, group: Group, joining: Sequence[Image]) -> None:
        """No client is passed over for ever: its first image waits a bounded number of others' joins in its group."""
        for image in joining:
            self.passed_over.pop(image, None)
        for line in self.policy.lines.values():
            for images in line.waiting.values():
                if images and images[0].job.group == group:
                    self.passed_over[images[0]] = self.passed_over.get(images[0], 0) + len(joining)
                    assert self.passed_over[images[0]] <= PATIENCE, "a client starves"

    def _check_idle(self) -> None:
        assert not any(self.slots.values()), "idle although images run"
        assert not self.policy.jobs, "idle although jobs wait"

    def check(self) -> None:
        """Each image is in one place, each job ends once, and what is counted is what there is."""
        places: dict[Image, list[State]] = {}
        for line in self.policy.lines.values():
            for image in line.all_waiting():
                places.setdefault(image, []).append(State.WAITING)
            for image in line.chosen:
                places.setdefault(image, []).append(State.CHOSEN)
            for image in line.running:
                places.setdefault(image, []).append(State.RUNNING)
        for image in self.policy._finished:
            places.setdefault(image, []).append(State.FINISHED)
        assert all(found == [image.state] for image, found in places.items()), "an image is in two places"
        alive = {i for job in self.policy.jobs.values() for i in job.images if i.state is not State.GONE}
        assert alive == set(places), "an image is lost"
        running = {image for images in self.slots.values() for image in images}
        assert running == {image for image, found in places.items() if found == [State.RUNNING]}
        assert len(self.ended) == len(set(self.ended)), "a job ended twice"
        assert {*self.jobs} - {*self.ended} == {*self.policy.jobs}, "a job got lost"
        self._check_work(places)

    def _check_work(self, places: dict[Image, list[State]]) -> None:
        work = sum(image.job.cost * image.calls_left / image.job.calls for image in places)
        assert abs(self.admission.work() - work) < 1e-6 * (1 + work), "work is counted wrong"
        assert self.policy.waiting() == sum(found == [State.WAITING] for found in places.values())
        assert self.policy.running() == sum(found != [State.WAITING] for found in places.values())
