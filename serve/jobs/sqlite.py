"""Jobs in SQLite and a state folder, kept through restarts and losses of power.

All operations run one after the other on a thread of their own, so that the event loop never waits for the disk.
"""

import asyncio
import errno
import os
import socket
import sqlite3
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import ParamSpec, TypeVar

from latentrt.runtime.files import lock
from latentrt.serve.messages import Picture

from .database import Database
from .files import FOLDERS, FolderFiles
from .kept_jobs import Bounds, KeptJobs
from .store import Claim, Counts, Ended, Failure, KeptJob, KeptPicture, NewJob, StateError, StorageError

P = ParamSpec("P")
R = TypeVar("R")
DATABASE = "jobs.sqlite"
LOCK = "lock"
# What the disk or SQLite may raise at any operation.
FAULTS = (OSError, sqlite3.Error)


class SqliteStore:
    """A store in SQLite. Implements `JobStore`."""

    def __init__(self, open_jobs: Callable[[], tuple[KeptJobs, Callable[[], None]]], *, durable: bool) -> None:
        """`open_jobs` opens the database, on the thread that uses it; with it comes what closes it."""
        self.durable = durable
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="jobs")
        try:
            self._jobs, self._close = self._thread.submit(open_jobs).result()
        except BaseException:
            self._thread.shutdown()
            raise

    async def _do(self, operation: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        def guarded() -> R:
            try:
                return operation(*args, **kwargs)
            except FAULTS as error:
                raise StorageError(f"the store of jobs cannot be used now: {error}", full=_is_full(error)) from error

        return await asyncio.get_running_loop().run_in_executor(self._thread, guarded)

    async def add(self, job: NewJob) -> KeptJob:
        """See `JobStore`, as for all that follow."""
        return await self._do(self._jobs.add, job)

    async def get(self, job: str) -> KeptJob | None:
        return await self._do(self._jobs.get, job)

    async def of_client(self, client: str, *, limit: int, before: str | None = None) -> list[KeptJob]:
        return await self._do(self._jobs.of_client, client, limit, before)

    async def ahead(self, job: str) -> int:
        return await self._do(self._jobs.ahead, job)

    async def counts(self) -> Counts:
        return await self._do(self._jobs.counts)

    async def claim(self, *, alone: bool, without: Collection[str] = ()) -> KeptJob | None:
        return await self._do(self._jobs.claim, alone, tuple(without))

    async def input(self, sha256: str) -> bytes:
        return await self._do(self._jobs.input, sha256)

    async def give_back(self, claim: Claim, *, counted: bool, alone: bool = False) -> bool:
        return await self._do(self._jobs.give_back, claim, counted, alone)

    async def keep_picture(self, claim: Claim, picture: Picture) -> KeptPicture:
        return await self._do(self._jobs.keep_picture, claim, picture)

    async def end(
        self,
        claim: Claim,
        state: Ended,
        *,
        pictures: Sequence[KeptPicture] = (),
        failure: Failure | None = None,
        timings: Mapping[str, float] | None = None,
    ) -> bool:
        return await self._do(self._jobs.end, claim, state, pictures, failure, timings or {})

    async def cancel(self, job: str) -> KeptJob | None:
        return await self._do(self._jobs.cancel, job)

    async def picture(self, picture: KeptPicture) -> bytes | None:
        return await self._do(self._jobs.picture, picture)

    async def sweep(self) -> int:
        return await self._do(self._jobs.sweep)

    async def close(self) -> None:
        with suppress(StorageError):  # everything has been committed
            await self._do(self._close)
        self._thread.shutdown(wait=False)


def _is_full(error: Exception) -> bool:
    if isinstance(error, sqlite3.Error):
        return error.sqlite_errorcode == sqlite3.SQLITE_FULL
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def store_in_folder(
    folder: Path, bounds: Bounds | None = None, *, clock: Callable[[], float] = time.time
) -> SqliteStore:
    """The store in a state folder, which is made if it is not there. One server has it at a time.

    Jobs that were under way when the last server died wait again, and what has expired is removed.

    Raises: StateError: another server has the folder, or it is damaged or cannot be written.
    """

    def opened() -> tuple[KeptJobs, Callable[[], None]]:
        held = _locked(folder)
        try:
            _require_database_of_files(folder)
            (folder / DATABASE).touch(mode=0o600)  # it holds what clients have asked for
            database = Database(folder / DATABASE)
        except BaseException:
            os.close(held)
            raise

        def close() -> None:
            database.close()
            os.close(held)

        try:
            jobs = KeptJobs(database, FolderFiles(folder), bounds or Bounds(), clock)
            jobs.recover()
            jobs.sweep()
        except FAULTS as error:
            close()
            raise StateError(f"the state folder {folder} cannot be used: {error}") from error
        return jobs, close

    return SqliteStore(opened, durable=True)


def _locked(folder: Path) -> int:
    """The lock of a state folder; it holds who has it."""
    file = folder / LOCK
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        held = lock(file, os.O_RDWR | os.O_CREAT)
    except OSError as error:
        raise StateError(f"the state folder {folder} cannot be locked: {error}") from error
    if held is None:
        with suppress(OSError):
            owner = file.read_text(encoding="utf-8", errors="replace").strip()[:200]
        raise StateError(
            f"the state folder {folder} is in use by {owner or 'another process'}: stop it, or use another folder"
        )
    os.ftruncate(held, 0)
    os.pwrite(held, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    return held


def _require_database_of_files(folder: Path) -> None:
    """Without its database, a folder with files is damaged: a new database would remove them."""
    database = folder / DATABASE
    if database.exists() and database.stat().st_size:
        return
    if any((folder / name).is_dir() and any((folder / name).iterdir()) for name in FOLDERS):
        raise StateError(
            f"the state folder {folder} has files of jobs, but {DATABASE} is missing or empty: put it back, or move "
            "the folder away to begin without jobs"
        )
