"""Whatever clients and devices do, the policy keeps its rules."""

from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)
from support.checked_queue import ChangingCosts, CheckedQueue
from support.simulated_device import group_of

from latentrt.serve.dispatcher.policy import Idle

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


def run_machine(examples: int, steps: int = 40) -> None:
    run_state_machine_as_test(
        QueueMachine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_rules_hold_whatever_happens() -> None:
    run_machine(100)


@pytest.mark.slow
def test_rules_hold_whatever_happens_for_long() -> None:
    run_machine(3000, 80)
