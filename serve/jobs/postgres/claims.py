"""Which claims a server believes to hold, beside what the database says. Knows no database. Used from any thread."""

import threading
import time
from collections.abc import Collection

from latentrt.serve.jobs.store import Claim

_PATIENCE = 5.0  # seconds that a claim may be in the database before this server has read that it was made


class Claims:
    """The claims of one server."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: set[Claim] = set()
        self._unknown: dict[Claim, float] = {}  # since when

    def add(self, claim: Claim) -> None:
        """A claim was made."""
        with self._lock:
            self._held.add(claim)

    def remove(self, claim: Claim) -> None:
        """A claim was given back, or its job has ended."""
        with self._lock:
            self._held.discard(claim)

    def now(self) -> set[Claim]:
        """Those that are held, to be compared with what the database says after this."""
        with self._lock:
            return set(self._held)

    def lost(self, before: Collection[Claim], found: Collection[Claim]) -> set[Claim]:
        """Claims that were held `before` the database was asked, and are not `found` there."""
        with self._lock:
            return (set(before) - set(found)) & self._held

    def orphans(self, found: Collection[Claim]) -> set[Claim]:
        """Claims of this server that nobody here knows: the answer was lost when they were made."""
        now = time.monotonic()
        with self._lock:
            unknown = set(found) - self._held
            self._unknown = {claim: self._unknown.get(claim, now) for claim in unknown}
            return {claim for claim, since in self._unknown.items() if now - since > _PATIENCE}
