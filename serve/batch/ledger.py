"""Which jobs are being drawn, and how often they had begun when a worker died. Outlives the workers; knows no Ray."""

from collections import Counter
from collections.abc import Sequence
from typing import Protocol

ATTEMPTS = 3


class Ledger(Protocol):
    """Counts beginnings until an end. What waits in a worker that dies has not begun, so it is not charged."""

    def begin(self, key: str) -> int:
        """Count a beginning; returns how many there are, this one included."""

    def begin_first(self, keys: Sequence[str]) -> bool:
        """Count a beginning of all of these if none of them has begun; returns whether it did."""

    def end(self, keys: Sequence[str]) -> None:
        """Forget them: the worker is alive."""


class Counts:
    """A `Ledger` in memory."""

    def __init__(self) -> None:
        self._begun: Counter[str] = Counter()

    def begin(self, key: str) -> int:
        """See `Ledger`."""
        self._begun[key] += 1
        return self._begun[key]

    def begin_first(self, keys: Sequence[str]) -> bool:
        """See `Ledger`."""
        if any(self._begun[key] for key in keys):
            return False
        self._begun.update(keys)
        return True

    def end(self, keys: Sequence[str]) -> None:
        """See `Ledger`."""
        for key in keys:
            del self._begun[key]
