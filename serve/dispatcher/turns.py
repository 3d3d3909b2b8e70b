"""Whose LoRAs a model's weights hold, and when the next set has its turn. Pure: times come from the caller.

A set that others wait for keeps the weights until its time is used up; then nothing joins, its images finish, and the
weights change. A set without work gives way at once.
"""

from collections.abc import Callable, Collection, Mapping

from .queue import Weights

LEAST_TURN = 5.0  # seconds
SWAPS_A_TURN = 10  # a turn is at least this many times as long as a swap


class Turns:
    """The weights of the models of one device."""

    def __init__(self, models: Collection[str], swap_seconds: Callable[[str], float]) -> None:
        """`swap_seconds`: how long it takes to change the weights of a model."""
        self._swap_seconds = swap_seconds
        self.active = {model: Weights(model) for model in models}
        self._since = dict.fromkeys(models, 0.0)
        self._order: dict[Weights, None] = {}  # sets that wait for a turn, in the order in which they began to

    def turn(self, model: str) -> float:
        """Seconds that a set keeps the weights while others wait."""
        return max(SWAPS_A_TURN * self._swap_seconds(model), LEAST_TURN)

    def left(self, model: str, now: float) -> float:
        """Seconds that are left of the present turn, if others wait."""
        return max(0.0, self._since[model] + self.turn(model) - now)

    def may_join(self, weights: Weights, waiting: Collection[Weights], now: float) -> bool:
        """Whether images of a set may start: its weights are in, and no other set has to wait for longer."""
        if self.active.get(weights.model) != weights:
            return False
        others = any(other.model == weights.model and other != weights for other in waiting)
        return not others or self.left(weights.model, now) > 0

    def due(self, waiting: Collection[Weights], busy: Mapping[Weights, bool], now: float) -> Weights | None:
        """The set to put in now: its model's present set has nothing under way and no claim to the weights."""
        waits = [weights for weights in waiting if weights != self.active[weights.model]]
        self._order = {weights: None for weights in self._order if weights in waits} | dict.fromkeys(waits)
        for weights in self._order:
            active = self.active[weights.model]
            claims = active in waiting and self.left(weights.model, now) > 0
            if not claims and not busy.get(active, False):
                return weights
        return None

    def reset(self, model: str) -> None:
        """A model is loaded anew: its weights are the checkpoint's."""
        self.active[model], self._since[model] = Weights(model), 0.0

    def changed(self, weights: Weights, now: float) -> None:
        """A set has been put in."""
        self._order.pop(weights, None)
        self.active[weights.model], self._since[weights.model] = weights, now
