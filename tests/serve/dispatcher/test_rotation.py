"""Deficit round robin: shares in proportion to weights, whatever work costs."""

from collections import Counter

from hypothesis import example, given, settings
from hypothesis import strategies as st

from latentrt.serve.dispatcher.rotation import Rotation

WEIGHTS = st.dictionaries(st.sampled_from("abcde"), st.sampled_from([0.5, 1.0, 2.0, 4.0]), min_size=2)
COSTS = st.lists(st.floats(1.0, 100.0), min_size=1, max_size=20)


@settings(deadline=None, max_examples=50)
@given(WEIGHTS, COSTS)
@example({"a": 1.0, "b": 1.0}, [20.0, 17.0, 50.0])
def test_those_who_always_wait_have_shares_in_proportion_to_their_weights(
    weights: dict[str, float], costs: list[float]
) -> None:
    """Two keys differ by two rounds and what one job may go beyond them, after any number of jobs."""
    rotation, had, turn = Rotation[str](), dict.fromkeys(weights, 0.0), dict.fromkeys(weights, 0)
    most = max(costs)
    for _ in range(300):
        heads = {key: costs[(turn[key] + len(costs) * (key > "b") // 2) % len(costs)] for key in weights}
        key = rotation.next(heads, weights)
        rotation.spend(key, heads[key])
        had[key] += heads[key]
        turn[key] += 1
        served = [had[key] / weights[key] for key in weights]
        assert max(served) - min(served) <= 3 * most * (1 + 1 / min(weights.values()))


@settings(deadline=None, max_examples=50)
@given(WEIGHTS, COSTS)
def test_turns_whose_cost_is_known_afterwards_are_as_fair(weights: dict[str, float], costs: list[float]) -> None:
    rotation, had = Rotation[str](), dict.fromkeys(weights, 0.0)
    quantum = 50.0
    for number in range(300):
        key = rotation.current(weights, quantum)
        rotation.spend(key, costs[number % len(costs)])
        had[key] += costs[number % len(costs)]
        served = [had[key] / weights[key] for key in weights]
        assert max(served) - min(served) <= 2 * quantum + 2 * max(costs) / min(weights.values())


def test_a_turn_lasts_until_its_quantum_is_used_up() -> None:
    rotation, weights = Rotation[str](), {"a": 1.0, "b": 2.0}
    order = []
    for _ in range(12):
        key = rotation.current(weights, 30.0)
        rotation.spend(key, 10.0)
        order.append(key)
    assert "".join(order) == "aaabbbbbbaaa"


def test_a_client_that_leaves_takes_no_credit_along() -> None:
    rotation = Rotation[str]()
    assert rotation.next({"a": 100.0, "b": 1.0}, {"a": 1.0, "b": 1.0}) == "a"
    assert rotation.deficits() == {"a": 100.0, "b": 100.0}
    rotation.next({"b": 1.0}, {"b": 1.0})
    rotation.next({"b": 1.0, "a": 1.0}, {"a": 1.0, "b": 1.0})
    assert rotation.deficits()["a"] == 0.0


def test_a_newcomer_has_its_turn_after_one_round_of_the_others() -> None:
    rotation, costs, weights = Rotation[str](), {"a": 1.0, "b": 1.0}, {"a": 1.0, "b": 1.0, "c": 1.0}
    rotation.spend(rotation.next(costs, weights), 1.0)
    order = []
    for _ in range(4):
        order.append(rotation.next({**costs, "c": 1.0}, weights))
        rotation.spend(order[-1], 1.0)
    assert order == ["b", "a", "b", "c"]


def test_many_with_small_weights_all_have_their_turn() -> None:
    keys = {str(number): 0.1 for number in range(50)}
    rotation, count = Rotation[str](), Counter[str]()
    for _ in range(500):
        key = rotation.next(dict.fromkeys(keys, 10.0), keys)
        rotation.spend(key, 10.0)
        count[key] += 1
    assert set(count.values()) == {10}
