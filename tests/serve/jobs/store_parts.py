"""What tests of stores share: stores of every kind, a clock, jobs and pictures."""

import asyncio
import hashlib
import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from support.postgres import Cluster

from latentrt.serve.jobs.bounds import Bounds
from latentrt.serve.jobs.memory import store_in_memory
from latentrt.serve.jobs.postgres.leases import Lease
from latentrt.serve.jobs.postgres.store import PostgresStore, store_in_postgres
from latentrt.serve.jobs.sqlite import store_in_folder
from latentrt.serve.jobs.store import NewJob
from latentrt.serve.jobs.threaded import ThreadedStore
from latentrt.serve.messages import Picture

Store = ThreadedStore[Any]
_NUMBERS = itertools.count()

TTL = 100.0


class Clock:
    """A clock that a test moves."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


class SqlClock(str):
    """The time of a clock that a test moves, as SQL."""

    clock: Clock

    def __format__(self, spec: str) -> str:
        return f"{self.clock.now}::float8"


@dataclass
class Place:
    """Where a store is kept, so that it can be opened again. `kind`: memory, folder or postgres."""

    kind: str
    folder: Path
    cluster: Callable[[], Cluster]

    def __post_init__(self) -> None:
        self.schema = f"place{next(_NUMBERS)}"

    def open(self, bounds: Bounds, clock: Clock) -> Store:
        """A store; jobs that were under way when the last one died wait again."""
        if self.kind == "memory":
            return store_in_memory(bounds, clock=clock)
        if self.kind == "folder":
            return store_in_folder(self.folder, bounds, clock=clock)
        now = SqlClock()
        now.clock = clock
        store = store_in_postgres(self.cluster().url(), self.folder, bounds, schema=self.schema, now=now, files_every=0)
        Lease(store._jobs._connections, store._jobs, 0.0).take_back()
        return store


def die(store: Store) -> None:
    """End a store as a killed process does: nothing is given back, and the lease runs out."""
    if isinstance(store, PostgresStore):
        store._beats._lease.leave = lambda: None  # type: ignore[method-assign]
        jobs = store._jobs
        asyncio.run(store._do(jobs.rows, "DELETE FROM servers WHERE id = %s RETURNING id", jobs.server))
    asyncio.run(store.close())


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def new_job(name: str, **changes: Any) -> NewJob:
    return replace(NewJob(name, "me", "sd", '{"a": 1}', 1, 1000), **changes)


def picture(job: str, image: int = 0, data: bytes = b"png") -> Picture:
    return Picture(job, image, 7, 8, 8, data, "png")
