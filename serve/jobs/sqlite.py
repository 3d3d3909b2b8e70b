"""Jobs in SQLite and a state folder, kept through restarts and losses of power.

All operations run one after the other on a thread of their own, so that the event loop never waits for the disk.
"""

import os
import socket
import sqlite3
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from latentrt.runtime.files import lock

from .bounds import Bounds
from .database import Database
from .files import FOLDERS, FolderFiles
from .kept_jobs import KeptJobs
from .store import StateError
from .threaded import ThreadedStore

DATABASE = "jobs.sqlite"
LOCK = "lock"


class SqliteStore(ThreadedStore[KeptJobs]):
    """A store in SQLite. Implements `JobStore`."""

    faults = (OSError, sqlite3.Error)

    def is_full(self, error: Exception) -> bool:
        """Whether the disk is full, as SQLite says it."""
        if isinstance(error, sqlite3.Error):
            return error.sqlite_errorcode == sqlite3.SQLITE_FULL
        return super().is_full(error)


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
        except SqliteStore.faults as error:
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
