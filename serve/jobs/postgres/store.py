"""Jobs of several servers, in PostgreSQL and files that they share."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psycopg

from latentrt.serve.jobs.bounds import Bounds
from latentrt.serve.jobs.store import Listener, StateError
from latentrt.serve.jobs.threaded import ThreadedStore
from latentrt.serve.messages import Progress

from .beats import Beats
from .connections import Connections
from .kept_jobs import PostgresJobs
from .leases import Lease
from .schema import LOCK, prepare, reason
from .shared_files import shared_files
from .table import NOW

SCHEMA = "latentrt"
THREADS = 4  # each with its connection; one more listens
_FILES_EVERY = 300.0  # seconds


class PostgresStore(ThreadedStore[PostgresJobs]):
    """A store in PostgreSQL. Implements `JobStore`."""

    faults = (OSError, psycopg.Error)
    _beats: Beats

    def __init__(self, open_jobs: Callable[[], tuple[PostgresJobs, Beats, Callable[[], None]]]) -> None:
        """`open_jobs`: see `ThreadedStore`; with the jobs comes what keeps their lease."""

        def opened() -> tuple[PostgresJobs, Callable[[], None]]:
            jobs, self._beats, close = open_jobs()
            return jobs, close

        super().__init__(opened, durable=True, threads=THREADS)
        self._beats.start()

    def listen(self, listener: Listener) -> None:
        """See `JobStore`."""
        loop = asyncio.get_running_loop()

        def hear(happens: Callable[[Listener], None]) -> None:
            with suppress(RuntimeError):  # the loop has been closed
                loop.call_soon_threadsafe(happens, listener)

        self._beats.listen(hear)

    def tell(self, event: Progress) -> None:
        """See `JobStore`."""
        self._beats.tell(event)


def store_in_postgres(
    url: str,
    files: Path | str,
    bounds: Bounds | None = None,
    *,
    schema: str = SCHEMA,
    lease: float = 30.0,
    now: str = NOW,
    files_every: float = _FILES_EVERY,
) -> PostgresStore:
    """The store in a database, whose tables are made if they are not there. Any number of servers have it at a time.

    Args:
        url: such as postgresql://user:password@host/database.
        files: folder or address of fsspec that all servers share.
        schema: of its tables; what it holds is one store.
        lease: seconds that a server may be away before others draw its jobs.
        now: the time in SQL, seconds since 1970.
        files_every: seconds between two looks for files that belong to no job.

    Raises: StateError: the database or the files cannot be used, or are of another version.
    """

    def opened() -> tuple[PostgresJobs, Beats, Callable[[], None]]:
        connections = Connections(url, schema)
        try:
            with connections.connected() as connection:
                store = prepare(connection, schema)
                with connection.transaction():
                    connection.execute(LOCK, [schema])
                    row = connection.execute("SELECT marked FROM meta").fetchone()
                    kept = shared_files(files, store, is_new=row is None or not row["marked"])
                    connection.execute("UPDATE meta SET marked = true")
            jobs = PostgresJobs(connections, schema, kept, bounds or Bounds(), now=now, files_every=files_every)
            beats = Beats(connections, jobs, Lease(connections, jobs, lease), schema)
            jobs.sweep()
        except BaseException as error:
            connections.close()
            if isinstance(error, psycopg.Error | OSError):
                raise StateError(f"the state in PostgreSQL cannot be used: {reason(error)}") from error
            raise

        def close() -> None:
            try:
                beats.stop()
            finally:
                connections.close()

        return jobs, beats, close

    return PostgresStore(opened)
