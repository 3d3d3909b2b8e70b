"""Whose LoRAs a model's weights hold."""

import pytest

from latentrt.serve.dispatcher.queue import Weights
from latentrt.serve.dispatcher.turns import LEAST_TURN, Turns

BASE, A, B = Weights("m"), Weights("m", (("a", 1.0),)), Weights("m", (("b", 1.0),))
OTHER = Weights("n", (("a", 1.0),))


def turns(swap: float = 0.1) -> Turns:
    return Turns(["m", "n"], lambda _: swap)


@pytest.mark.parametrize(("swap", "seconds"), [(0.1, LEAST_TURN), (0.5, LEAST_TURN), (2.0, 20.0)])
def test_a_turn_is_long_beside_a_swap(swap: float, seconds: float) -> None:
    assert turns(swap).turn("m") == seconds


def test_a_set_without_rivals_keeps_the_weights() -> None:
    assert turns().may_join(BASE, [BASE], 1e6)
    assert turns().due([BASE], {}, 1e6) is None


def test_a_turn_ends_when_its_time_is_over_and_another_set_waits() -> None:
    state = turns()
    state.changed(A, 100.0)
    assert state.may_join(A, [A, B], 104.9)
    assert state.due([A, B], {}, 104.9) is None
    assert not state.may_join(A, [A, B], 105.0)
    assert state.due([A, B], {A: True}, 105.0) is None, "its images have not finished"
    assert state.due([A, B], {}, 105.0) == B


def test_a_set_without_work_gives_way_at_once_but_not_under_running_images() -> None:
    state = turns()
    state.changed(A, 100.0)
    assert state.due([B], {A: True}, 100.1) is None
    assert state.due([B], {}, 100.1) == B


def test_nothing_joins_before_its_set_is_in() -> None:
    assert not turns().may_join(A, [A], 0.0)


def test_models_have_turns_of_their_own() -> None:
    state = turns()
    state.changed(A, 100.0)
    assert state.due([A, OTHER], {A: True}, 101.0) == OTHER
    state.changed(OTHER, 101.0)
    assert state.active == {"m": A, "n": OTHER}
    assert state.may_join(A, [A, OTHER], 1e6)


def test_sets_have_their_turns_in_the_order_in_which_they_began_to_wait() -> None:
    state, now, order = turns(), 100.0, []
    for _ in range(6):
        now += LEAST_TURN
        weights = state.due([BASE, A, B], {}, now)
        assert weights is not None
        state.changed(weights, now)
        order.append(weights)
    assert order == [A, B, BASE, A, B, BASE]


def test_ever_new_sets_keep_nobody_out() -> None:
    """A client that asks for another strength of its LoRA each time."""
    state, now = turns(), 100.0
    state.changed(A, now)
    for number in range(20):
        now += LEAST_TURN
        waiting = [BASE, *(Weights("m", (("a", number + part / 10),)) for part in range(3))]
        weights = state.due(waiting, {}, now)
        assert weights is not None
        state.changed(weights, now)
        if weights == BASE:
            return
    raise AssertionError("the checkpoint's own set starves")
