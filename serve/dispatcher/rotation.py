"""Deficit round robin (Shreedhar and Varghese, 1995): device time in proportion to weights, whatever work costs."""

from collections.abc import Hashable, Mapping
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class Rotation(Generic[K]):
    """Who is next. Those who have nothing to do leave the rotation, and take no credit along."""

    def __init__(self) -> None:
        self._deficits: dict[K, float] = {}  # in the order of their turns
        self._quantum, self._due = 0.0, set[K]()  # of this round, and who has not got it yet

    def next(self, costs: Mapping[K, float], weights: Mapping[K, float]) -> K:
        """The key whose turn it is; `spend` takes the cost off its deficit.

        Args:
            costs: of what each key does next; not empty. Only these stay in the rotation.
            weights: above 0; a key gets the largest cost times its weight in each round. That is the largest at the
                beginning of the round, the same for all, as costs change from job to job.
        """
        self._keep(costs)
        while True:
            for key in list(self._deficits):
                if self._deficits[key] >= costs[key]:
                    return key
                if key not in self._due:
                    self._quantum, self._due = max(max(costs.values()), 1e-9), set(self._deficits)
                self._due.discard(key)
                self._to_the_end(key, self._quantum * weights[key])

    def current(self, weights: Mapping[K, float], quantum: float) -> K:
        """The key whose turn it is where the cost is known afterwards: it keeps its turn while it has deficit left."""
        self._keep(weights)
        while True:
            for key in list(self._deficits):
                if self._deficits[key] > 0:
                    return key
                self._to_the_end(key, quantum * weights[key])

    def spend(self, key: K, cost: float) -> None:
        """Take a cost off the deficit of a key."""
        if key in self._deficits:
            self._deficits[key] -= cost

    def deficits(self) -> dict[K, float]:
        """What each key may spend before its turn is over, in the order of their turns."""
        return dict(self._deficits)

    def _keep(self, keys: Mapping[K, float]) -> None:
        self._deficits = {key: deficit for key, deficit in self._deficits.items() if key in keys}
        for key in keys:
            self._deficits.setdefault(key, 0.0)

    def _to_the_end(self, key: K, credit: float) -> None:
        """Its turn is over; the next one begins with this credit more."""
        self._deficits[key] = self._deficits.pop(key) + credit
