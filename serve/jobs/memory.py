"""Jobs that are kept in memory for a time, and end with the process."""

import time
from collections.abc import Callable

from .bounds import Bounds
from .database import Database
from .files import FOLDERS, Folder
from .kept_jobs import KeptJobs
from .sqlite import SqliteStore


class MemoryFiles:
    """Files in memory."""

    def __init__(self) -> None:
        self._folders: dict[Folder, dict[str, bytes]] = {folder: {} for folder in FOLDERS}

    def write(self, folder: Folder, name: str, data: bytes) -> None:
        """Keep bytes."""
        self._folders[folder][name] = data

    def read(self, folder: Folder, name: str) -> bytes | None:
        """The bytes under a name; None if there are none."""
        return self._folders[folder].get(name)

    def names(self, folder: Folder) -> list[str]:
        """All names."""
        return list(self._folders[folder])

    def remove(self, folder: Folder, name: str) -> None:
        """Forget a name."""
        self._folders[folder].pop(name, None)


def store_in_memory(bounds: Bounds | None = None, *, clock: Callable[[], float] = time.time) -> SqliteStore:
    """A store whose jobs end with the process."""

    def opened() -> tuple[KeptJobs, Callable[[], None]]:
        database = Database(None)
        return KeptJobs(database, MemoryFiles(), bounds or Bounds(), clock), database.close

    return SqliteStore(opened, durable=False)
