"""Which jobs are accepted, what they are told, and what deadlines do."""

from dataclasses import replace

import pytest
from support.load import Load
from support.simulated_device import Ask, FixedCosts, Outcome, Simulation, group_of

from latentrt.serve.dispatcher.admission import Admission
from latentrt.serve.messages import LONGEST_RETRY, RefusedError

SMALL, LARGE = group_of(64), group_of(96)


def fill(sim: Simulation, client: str, most: int = 2000, **job: int) -> list[Outcome]:
    """Jobs of one client until one is refused."""
    outcomes = []
    for _ in range(most):
        outcomes.append(sim.submit(Ask(sim.now, client, SMALL, **({"calls": 20} | job))))
        if outcomes[-1].refused is not None:
            break
    return outcomes


def test_an_idle_device_tells_how_long_it_takes() -> None:
    sim = Simulation(FixedCosts())
    sim.run([Ask(0.0, "a", SMALL, 20)], until=100.0)
    (outcome,) = sim.outcomes.values()
    assert outcome.wait == 0.0
    assert outcome.finished == pytest.approx((5 + 20 * 30 + 8) / 1000)
    assert outcome.estimate == pytest.approx(outcome.finished, rel=0.05)


def test_a_full_group_tells_when_a_slot_is_free() -> None:
    sim = Simulation(FixedCosts())
    sim.run([*(Ask(0.0, "a", SMALL, 20) for _ in range(8)), Ask(0.1, "b", SMALL, 20)], until=100.0)
    last = list(sim.outcomes.values())[-1]
    assert last.started is not None
    assert last.wait == pytest.approx(last.started - last.ask.at, rel=0.1)


def test_another_set_waits_for_those_that_run_and_for_the_swap() -> None:
    sim = Simulation(FixedCosts())
    sim.run([Ask(0.0, "a", SMALL, 100), Ask(0.5, "b", group_of(64, "a"), 20)], until=100.0)
    last = list(sim.outcomes.values())[-1]
    assert last.started is not None
    assert last.started == pytest.approx(3.0 + 0.4, abs=0.1)
    assert last.started <= last.ask.at + last.wait + 0.1 <= last.started + 10.0


def test_the_longest_job_is_accepted_where_nothing_waits() -> None:
    sim = Simulation(FixedCosts(base=2000.0))
    assert sim.submit(Ask(0.0, "a", LARGE, 150, images=8)).refused is None


def test_one_client_cannot_fill_the_queue() -> None:
    sim = Simulation(FixedCosts())
    refused = fill(sim, "a")[-1].refused
    assert refused is not None
    assert refused.reason == "client_busy"
    assert sim.submit(Ask(0.0, "b", SMALL, 20)).refused is None


def test_clients_fill_the_queue_in_proportion_to_their_weights() -> None:
    sim = Simulation(FixedCosts())
    for client in "ab":
        sim.submit(Ask(0.0, client, SMALL, 20, weight=1.0 if client == "a" else 3.0))
    accepted = {"a": 1, "b": 1}
    for _ in range(2000):
        for client, weight in (("a", 1.0), ("b", 3.0)):
            accepted[client] += sim.submit(Ask(0.0, client, SMALL, 20, weight=weight)).refused is None
    assert 2.0 <= accepted["b"] / accepted["a"] <= 4.0


def test_refusals_tell_when_to_come_back() -> None:
    sim = Simulation(FixedCosts())
    refusals = [fill(sim, f"c{number}")[-1].refused for number in range(20)]
    for refusal in refusals:
        assert refusal is not None
        assert refusal.retry_after is not None
        assert refusal.retry_after == int(refusal.retry_after)
        assert 1 <= refusal.retry_after <= LONGEST_RETRY


@pytest.mark.parametrize(
    ("limits", "reason"),
    [({"max_queue": 5, "client_jobs": 100}, "busy"), ({"max_queue": 100, "client_jobs": 5}, "client_busy")],
)
def test_limits_of_counts(limits: dict[str, int], reason: str) -> None:
    sim = Simulation(FixedCosts())
    sim.admission = Admission(sim.policy, max_wait=30.0, **limits)
    *accepted, last = fill(sim, "a")
    assert len(accepted) == 5
    assert last.refused is not None
    assert last.refused.reason == reason


def test_a_refused_job_leaves_nothing_behind() -> None:
    sim = Simulation(FixedCosts())
    fill(sim, "a")
    work, waiting = sim.admission.work(), sim.policy.waiting()
    assert sim.submit(Ask(0.0, "a", SMALL, 20)).refused is not None
    assert (sim.admission.work(), sim.policy.waiting()) == (work, waiting)


# --- deadlines --------------------------------------------------------------------------------------------------------


def test_a_deadline_that_cannot_be_met_is_refused() -> None:
    sim = Simulation(FixedCosts())
    refused = sim.submit(Ask(0.0, "a", SMALL, 20, deadline=0.5)).refused
    assert refused is not None
    assert refused.reason == "deadline"
    assert sim.submit(Ask(0.0, "a", SMALL, 20, deadline=0.8)).refused is None


def test_a_deadline_behind_others_is_refused_where_the_queue_is_too_long() -> None:
    sim = Simulation(FixedCosts())
    for number in range(64):
        sim.submit(Ask(0.0, f"c{number % 8}", SMALL, 20))
    with pytest.raises(RefusedError, match="deadline"):
        raise sim.submit(Ask(0.0, "c0", SMALL, 20, deadline=2.0)).refused or AssertionError("accepted")
    assert sim.submit(Ask(0.0, "c0", SMALL, 20, deadline=60.0)).refused is None


def test_work_is_dropped_once_it_cannot_meet_its_deadline_whether_it_waits_or_runs() -> None:
    """The device is slower than its costs say, from the first call on."""
    sim = Simulation(FixedCosts(caps=1))
    took = sim.took
    sim.took = lambda action: 3 * took(action)  # type: ignore[method-assign]
    sim.run([Ask(0.0, "a", SMALL, 20, deadline=0.8), Ask(0.0, "b", SMALL, 20, deadline=1.5)], until=100.0)
    runs, waits = sim.outcomes.values()
    assert runs.refused is None
    assert waits.refused is None
    assert (runs.dropped, waits.dropped) == (True, True)
    assert runs.started is not None
    assert sim.now < 1.5
    assert not sim.policy.jobs


def test_deadlines_never_change_the_order() -> None:
    load = Load((SMALL, LARGE), calls=(4, 20), times=1.2)
    asks = load.asks(5, 60.0)
    plain, with_deadlines = Simulation(load.costs), Simulation(load.costs)
    plain.run(asks, until=60.0)
    with_deadlines.run([replace(ask, deadline=1e4 + 7 * number % 13) for number, ask in enumerate(asks)], until=60.0)
    assert [o.started for o in plain.outcomes.values()] == [o.started for o in with_deadlines.outcomes.values()]
