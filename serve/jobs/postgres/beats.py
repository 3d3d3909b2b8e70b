"""A thread that keeps a server's lease, takes back what servers without one have claimed, listens, and tells steps.

It is none of the event loop's, so that a busy server does not lose its jobs. Leases go by the clock of the database.
"""

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import psycopg

from latentrt.serve.jobs.store import Listener
from latentrt.serve.messages import Progress

from .connections import Connections
from .kept_jobs import PostgresJobs
from .leases import Lease
from .notices import CHANGED, PROGRESS, WAITS, notice_of, progress_texts
from .schema import reason

logger = logging.getLogger(__name__)

BEAT = 1.0  # seconds between two renewals of the lease
_TICK = 0.25  # seconds between two looks at what there is to tell


class Beats:
    """The thread of one store, with its own connection."""

    def __init__(self, connections: Connections, jobs: PostgresJobs, lease: Lease, schema: str) -> None:
        """Take the lease; raises `psycopg.Error`. The thread is started by `start`."""
        self._connections, self._jobs, self._lease, self._schema = connections, jobs, lease, schema
        self._lock = threading.Lock()
        self._progress: dict[tuple[str, int], Progress] = {}
        self._hear: Callable[[Callable[[Listener], None]], None] = lambda _: None
        self._stopped = threading.Event()
        self._is_away = False
        self._next_beat = 0.0
        self._thread = threading.Thread(target=self._run, name="beats", daemon=True)
        self._beat()

    def start(self) -> None:
        """Begin to listen and to renew the lease."""
        self._thread.start()

    def listen(self, hear: Callable[[Callable[[Listener], None]], None]) -> None:
        """`hear` lets the listener do something, from this thread."""
        self._hear = hear

    def tell(self, event: Progress) -> None:
        """Tell other servers of a call with the next tick; only the latest of each image."""
        with self._lock:
            self._progress[event.job, event.image] = event

    def stop(self) -> None:
        """End the thread, and give back the lease with all that is still claimed."""
        self._stopped.set()
        with suppress(psycopg.Error):  # so that it does not wait for its next tick
            self._jobs.row("SELECT pg_notify(%s, '')", self._schema)
        self._thread.join()
        self._lease.leave()

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                if time.monotonic() >= self._next_beat:
                    self._next_beat = time.monotonic() + min(BEAT, self._lease.seconds / 4)
                    self._beat()
                self._tick()
                self._is_away = False
            except (psycopg.Error, OSError) as error:
                if not self._is_away:
                    logger.warning("PostgreSQL cannot be reached, it is tried again: %s", reason(error))
                self._is_away = True
                self._stopped.wait(_TICK)
            except Exception:
                logger.exception("the lease may not be renewed")
                self._stopped.wait(_TICK)

    # --- the lease

    def _beat(self) -> None:
        jobs, before = self._jobs, self._jobs.claims.now()
        found = self._lease.renew()
        for claim in jobs.claims.lost(before, found):
            self._changed(claim.job)
        for claim in jobs.claims.orphans(found):
            jobs.give_back(claim, False, False)
        if self._lease.take_back():
            self._changed(None)  # own notices are not heard

    # --- notices

    def _tick(self) -> None:
        """Hear for a moment, then tell what has gathered."""
        with self._connections.listening(self._schema) as (connection, is_new):
            if is_new:
                self._changed(None)  # notices of the time before are lost
            for notice in connection.notifies(timeout=_TICK):
                self._heard(notice.payload)
                if self._stopped.is_set():
                    break
        with self._lock:
            events, self._progress = list(self._progress.values()), {}
        if events:
            with self._connections.connected() as connection:
                for text in progress_texts(self._jobs.server, events):
                    connection.execute("SELECT pg_notify(%s, %s)", [self._schema, text])

    def _heard(self, text: str) -> None:
        notice = notice_of(text)
        if notice is None or notice.server == self._jobs.server:
            return
        if notice.kind in (CHANGED, WAITS):
            self._changed(notice.job)
        if notice.kind == WAITS:
            self._hear(lambda listener: listener.waits())
        for event in notice.progress if notice.kind == PROGRESS else ():
            self._hear(lambda listener, event=event: listener.progressed(event))  # type: ignore[misc]

    def _changed(self, job: str | None) -> None:
        self._hear(lambda listener: listener.changed(job))
