"""A store in PostgreSQL that several servers join."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.postgres import Cluster

from latentrt.serve.jobs.bounds import Bounds
from latentrt.serve.jobs.postgres.store import PostgresStore, store_in_postgres

Joined = Callable[..., PostgresStore]


@pytest.fixture
def joined(postgres: Cluster, tmp_path: Path) -> Iterator[Joined]:
    """Opens the store of a test, each time for another server."""
    stores: list[PostgresStore] = []
    schema = postgres.schema()

    def open_store(*, files: Path | str = tmp_path, lease: float = 30.0, **bounds: Any) -> PostgresStore:
        stores.append(
            store_in_postgres(postgres.url(), files, Bounds(**bounds), schema=schema, lease=lease, files_every=0)
        )
        return stores[-1]

    yield open_store
    for store in stores:
        if not store._threads._shutdown:
            asyncio.run(store.close())
