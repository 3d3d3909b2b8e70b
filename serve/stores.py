"""Opens the store of jobs that a setting names. Knows every store, and no HTTP."""

from importlib.util import find_spec
from pathlib import Path

from latentrt.runtime.errors import BackendError
from latentrt.serve.jobs.bounds import Bounds
from latentrt.serve.jobs.memory import store_in_memory
from latentrt.serve.jobs.sqlite import store_in_folder
from latentrt.serve.jobs.store import JobStore

MEMORY_BYTES, MEMORY_TTL = 512 << 20, 3600.0  # of results that are kept without a folder, at most
LEASE = 30.0  # seconds
# Modules of the extra `postgres`.
_NEEDED = ("psycopg", "fsspec")


def open_store(
    state: Path | str | None,
    files: Path | str | None = None,
    *,
    result_bytes: int,
    result_ttl: float,
    lease: float = LEASE,
) -> JobStore:
    """The store of a state; `files` is needed with an address of PostgreSQL.

    Args:
        state: a folder, an address such as postgresql://user:password@host/database, or None for memory.
        files: folder that all servers of the database share, or address of fsspec such as s3://bucket/folder.
        result_bytes: of documents, inputs and results, at most.
        result_ttl: seconds that results are kept.
        lease: seconds that a server of the database may be away before others draw its jobs.

    Raises: StateError: it cannot be used. BackendError: a package is missing.
    """
    if state is None:
        return store_in_memory(Bounds(bytes=min(result_bytes, MEMORY_BYTES), result_ttl=min(result_ttl, MEMORY_TTL)))
    bounds = Bounds(bytes=result_bytes, result_ttl=result_ttl)
    if isinstance(state, Path):
        return store_in_folder(state, bounds)
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise BackendError(
            f"{', '.join(missing)} not found: state in PostgreSQL needs pip install 'latentrt[postgres]'"
        )
    if files is None:
        raise BackendError("state in PostgreSQL needs files, a folder or an address that all its servers share")
    from latentrt.serve.jobs.postgres.store import store_in_postgres

    return store_in_postgres(state, files, bounds, lease=lease)
