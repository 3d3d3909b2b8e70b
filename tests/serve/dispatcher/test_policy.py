"""Whatever clients and devices do, the policy keeps its rules."""

import math
from collections.abc import Callable, Collection, Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from support.checked_queue import ChangingCosts, CheckedQueue
from support.load import Load
from support.queue_rules import CHECKS
from support.simulated_device import FixedCosts, Simulation, group_of

from latentrt.serve.dispatcher import admission, policy
from latentrt.serve.dispatcher.forecast import work_left
from latentrt.serve.dispatcher.policy import QUANTUM, Action, Call, Decode, Encode, Idle, Policy
from latentrt.serve.dispatcher.queue import Client, Group, Image, Line, QueuedJob, State, Weights
from latentrt.serve.dispatcher.turns import Turns

# More sizes than groups may hold slots, two sets of LoRAs beside the checkpoint, and another model.
PLACES = [*((side, "", "m") for side in (64, 72, 80, 88, 96)), (64, "a", "m"), (72, "a", "m"), (64, "b", "m")]
PLACES += [(64, "", "n"), (64, "a", "n")]
JOBS: dict[str, st.SearchStrategy[Any]] = {
    "client": st.sampled_from("pqrs"),
    # A record of its own for each job, as jobs that come over HTTP have.
    "group": st.sampled_from(PLACES).map(lambda place: group_of(*place)),
    "calls": st.integers(1, 6),
    "images": st.integers(1, 5),
    "weight": st.sampled_from([0.5, 1.0, 4.0]),
    "deadline": st.one_of(st.none(), st.none(), st.floats(0.05, 5.0)),
    "alone": st.sampled_from([False] * 9 + [True]),
}


class QueueMachine(RuleBasedStateMachine):
    """Clients, failures and time, in any order."""

    queue: CheckedQueue

    @initialize(max_wait=st.sampled_from([1.0, 1e6]), cap=st.integers(1, 4), swap=st.sampled_from([0.0, 0.4]))
    def start(self, max_wait: float, cap: int, swap: float) -> None:
        self.queue = CheckedQueue(max_wait=max_wait, costs=ChangingCosts(caps=cap, swap=swap))

    @rule(**JOBS)
    def submit(self, **job: Any) -> None:
        self.queue.submit(**job)
        self.queue.check()

    @rule(**JOBS)
    def submit_meanwhile(self, **job: Any) -> None:
        self.queue.step(meanwhile=lambda: self.queue.submit(**job))

    @rule(times=st.integers(1, 30))
    def work(self, times: int) -> None:
        for _ in range(times):
            if isinstance(self.queue.step(), Idle):
                return

    @rule()
    def fail(self) -> None:
        self.queue.step(fails=True)

    @precondition(lambda self: self.queue.policy.jobs)
    @rule(number=st.integers(0, 1000))
    def cancel(self, number: int) -> None:
        jobs = list(self.queue.policy.jobs.values())
        self.queue.cancel(jobs[number % len(jobs)])

    @rule(seconds=st.floats(0.0, 8.0))
    def pass_time(self, seconds: float) -> None:
        self.queue.now += seconds

    @precondition(lambda self: self.queue.policy.lines)
    @rule(number=st.integers(0, 1000), cap=st.integers(1, 2))
    def lower_cap(self, number: int, cap: int) -> None:
        groups = list(self.queue.policy.lines)
        group = groups[number % len(groups)]
        self.queue.costs.limits[group] = min(cap, self.queue.costs.cap(group))

    def teardown(self) -> None:
        if hasattr(self, "queue"):
            self.queue.finish()
            assert self.queue.admission.work() == 0
            assert not self.queue.policy.lines
            assert self.queue.policy.waiting() == self.queue.policy.running() == 0
            assert {*self.queue.ended} == {*self.queue.jobs}


def run_machine(examples: int, steps: int = 40, phases: Sequence[Phase] = tuple(Phase)) -> None:
    run_state_machine_as_test(
        QueueMachine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            phases=phases,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_rules_hold_whatever_happens() -> None:
    run_machine(100)


@pytest.mark.slow
def test_rules_hold_whatever_happens_for_long() -> None:
    run_machine(400, 60)


# --- single rules -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("check", CHECKS)
def test_a_single_rule(check: Callable[[], None]) -> None:
    check()


# --- the rules find faults --------------------------------------------------------------------------------------------


def _slot_kept(self: Line, image: Image) -> None:
    if image.state is State.RUNNING and image.calls_left:
        return
    _REMOVE(self, image)


def _never_released(self: Policy, image: Image) -> None:
    job = image.job
    _TAKE_OUT(self, image)
    self.jobs[job.id] = job


def _released_with_the_first_image(self: Policy, image: Image) -> None:
    _TAKE_OUT(self, image)
    self.jobs.pop(image.job.id, None)


def _released_twice(job: QueuedJob) -> float:
    return work_left(job) - sum(job.cost for image in job.images if image.state is State.GONE)


def _encodes_are_forgotten(self: Policy, action: Action, now: float, took: float) -> None:
    _DONE(self, action, now, took)
    self._encoded = None


def _encodes_are_charged_at_once(self: Policy, action: Action, now: float, took: float) -> None:
    _DONE(self, action, now, took)
    if isinstance(action, Encode):
        self._groups.spend(action.group, took)


def _joins_while_it_drains(self: Turns, weights: Weights, *_: object) -> bool:
    return self.active.get(weights.model) == weights


def _due_at_once(self: Turns, waiting: Collection[Weights], _busy: object, now: float) -> Weights | None:
    return _DUE(self, waiting, {}, now)


def _alone_is_ignored(self: Policy, job: QueuedJob) -> None:
    _ADD(self, job)
    self._alone.clear()


_REMOVE, _DUE = Line.remove, Turns.due
_ADD, _TAKE_OUT, _DONE = Policy.add, Policy._take_out, Policy.done
FAULTS: dict[str, tuple[object, str, object]] = {
    "a slot is not freed on cancel": (Line, "remove", _slot_kept),
    "a job is never released": (Policy, "_take_out", _never_released),
    "a job is released with its first image": (Policy, "_take_out", _released_with_the_first_image),
    "work is released twice": (admission, "work_left", _released_twice),
    "deadlines are ignored": (Policy, "expired", lambda *_: []),
    "texts are encoded before the swap": (Turns, "may_join", lambda *_: True),
    "weights change under running images": (Turns, "due", _due_at_once),
    "a set never drains": (Turns, "may_join", _joins_while_it_drains),
    "too many groups hold slots": (policy, "GROUPS_OPEN", 100),
    "two batches of texts between calls": (Policy, "done", _encodes_are_forgotten),
    "two groups encode between calls": (Policy, "done", _encodes_are_charged_at_once),
    "a job that runs alone has company": (Policy, "add", _alone_is_ignored),
}


def check_everything() -> None:
    for check in CHECKS:
        check()
    run_machine(60, phases=[Phase.generate])


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, name, mutant = FAULTS[fault]
    monkeypatch.setattr(owner, name, mutant)
    with pytest.raises((AssertionError, ExceptionGroup)):
        check_everything()


# --- how long running images are held up ------------------------------------------------------------------------------


def longest_encode(costs: FixedCosts, group: Group) -> float:
    """Texts of as many jobs as take no longer than a full call, and of at least one."""
    return max(costs.call(group, costs.cap(group)), costs.encode(QueuedJob("", group, Client(""), 1.0, 1, 1.0)))


def test_between_two_calls_there_is_one_decode_and_one_encode() -> None:
    """So a call begins at most a full decode and a batch of texts after the last one ended, if images run."""
    load = Load((group_of(64), group_of(96)), calls=(2, 4, 9), clients=6, images=(1, 3))
    sim = Simulation(load.costs)
    sim.run(load.asks(1, 40.0), until=40.0)
    bound = max(load.costs.decode(g, load.costs.cap(g)) + longest_encode(load.costs, g) for g in load.groups)
    calls = [number for number, (_, action, _) in enumerate(sim.actions) if isinstance(action, Call)]
    for before, after in pairwise(calls):
        between = [action for _, action, _ in sim.actions[before + 1 : after]]
        assert sum(isinstance(action, Decode) for action in between) <= 1
        assert sum(isinstance(action, Encode) for action in between) <= 1
        start, _, took = sim.actions[before]
        assert sim.actions[after][0] - start <= (took + bound) / 1000 + 1e-9


@pytest.mark.parametrize("sides", [(64,), (64, 96), (64, 80, 96, 128)])
def test_images_that_run_are_held_up_for_a_bounded_time(sides: tuple[int, ...]) -> None:
    """Each round, every other group h takes at most its quantum and what it may go beyond that, o(h): a full call, a
    full decode and a batch of texts. Group g can be over its own quantum by o(g), and sits out as many rounds as that
    takes to earn: ceil(o(g) / (quantum x weight of g)), and one more."""
    load = Load(tuple(group_of(side) for side in sides), calls=(4, 20), clients=5)
    costs, sim = load.costs, Simulation(load.costs)
    sim.run(load.asks(2, 60.0), until=60.0)
    over = {
        g: costs.call(g, costs.cap(g)) + costs.decode(g, costs.cap(g)) + longest_encode(costs, g) for g in load.groups
    }
    last: dict[Group, float] = {}
    for start, action, took in sim.actions:
        if not isinstance(action, Call):
            continue
        group = action.group
        if group in last and len(action.images) > len(action.joining):
            rounds = 1 + math.ceil(over[group] / (QUANTUM / len(sides)))
            others = [over[other] + QUANTUM * load.clients for other in load.groups if other != group]
            assert start - last[group] <= (rounds * sum(others) + over[group]) / 1000
        last[group] = start + took / 1000
