"""Three times as much work as a device can do, in virtual time: it is used, shared fairly, and promises are kept."""

from collections.abc import Callable
from typing import Any

import pytest
from support.load import Load, check_load, check_promises, run_load
from support.simulated_device import group_of

from latentrt.serve.dispatcher.queue import Line
from latentrt.serve.dispatcher.rotation import Rotation

SMALL, LARGE = group_of(64), group_of(96)
LOADS = {
    "one size": Load(calls=(4, 20)),
    "two sizes": Load((SMALL, LARGE), calls=(4, 20, 30)),
    "each client its own size": Load((SMALL, LARGE), apart=True),
    "4, 20 and 50 steps": Load(calls=(4, 20, 50)),
    "50 steps, 16 clients": Load(calls=(50,), clients=16),
    "two sizes, 16 clients": Load((SMALL, LARGE), calls=(4, 20), clients=16),
    "4 clients": Load(calls=(4, 20, 50), clients=4),
    "weights 1, 2 and 4": Load(weights=(1.0, 2.0, 4.0), clients=6),
    "weights, two sizes": Load((SMALL, LARGE), weights=(1.0, 2.0, 4.0), clients=6),
    "jobs of several images": Load(images=(1, 2, 4, 8)),
}
SETS = {
    "two sets": Load((SMALL, group_of(64, "a")), clients=4),
    "each client its own set": Load((SMALL, group_of(64, "a")), clients=4, apart=True),
    "three sets, two sizes": Load(
        (SMALL, group_of(64, "a"), group_of(64, "b"), group_of(80, "b")), calls=(4, 20), clients=4
    ),
}


@pytest.mark.parametrize("name", LOADS)
def test_a_device_that_is_asked_for_too_much(name: str) -> None:
    check_load(run_load(LOADS[name], seed=0))


@pytest.mark.parametrize("name", SETS)
def test_sets_of_loras_take_turns_and_promises_hold(name: str) -> None:
    """Swaps and drains cost something, which is bounded as well."""
    figures = run_load(SETS[name], seed=0, until=120.0)
    check_load(figures, goodput=0.8, error=0.35)
    assert figures.swaps >= 10


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 4))
@pytest.mark.parametrize("name", LOADS)
def test_other_seeds_for_longer(name: str, seed: int) -> None:
    check_load(run_load(LOADS[name], seed, until=300.0))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 9))  # more, as turns and admission act on each other
@pytest.mark.parametrize("name", SETS)
def test_other_seeds_of_sets(name: str, seed: int) -> None:
    check_load(run_load(SETS[name], seed, until=300.0), goodput=0.8, error=0.35)


@pytest.mark.parametrize("seed", range(3))
def test_a_device_that_is_not_full_keeps_nobody_waiting(seed: int) -> None:
    figures = run_load(Load((SMALL, LARGE), calls=(4, 20, 30), times=0.5), seed)
    check_promises(figures, max_wait=10.0)
    assert figures.unstarted <= 2


# --- the checks find faults -------------------------------------------------------------------------------------------


def _first_always(self: Rotation[Any], costs: dict[Any, float], _weights: dict[Any, float]) -> Any:
    self._keep(costs)
    return min(costs, key=str)


def _newest(self: Line, _now: float) -> Any:
    jobs = [image.job for image in self.all_waiting()]
    return max(jobs, key=lambda job: job.promised).client if jobs else None


FAULTS: dict[str, tuple[type, str, Callable[..., Any], str]] = {
    "a client is always the first": (Rotation, "next", _first_always, "one size"),
    "the newest job goes first": (Line, "urgent", _newest, "two sizes"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, name, mutant, load = FAULTS[fault]
    monkeypatch.setattr(owner, name, mutant)
    with pytest.raises(AssertionError):
        check_load(run_load((LOADS | SETS)[load], seed=0), goodput=0.8)


def test_equal_asks_have_equal_answers() -> None:
    assert run_load(LOADS["two sizes"], 3, until=40.0) == run_load(LOADS["two sizes"], 3, until=40.0)
