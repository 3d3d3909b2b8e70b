"""The files of a store that several servers share: in a folder that all of them have, or at an address of fsspec."""

import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from latentrt.runtime.errors import BackendError
from latentrt.serve.jobs.files import Files, Folder, FolderFiles
from latentrt.serve.jobs.store import StateError

_UNFINISHED = 3600.0  # seconds; a file that was begun longer ago is not being written any more
_MARK = "store"  # the name of the file that says whose files these are


class SharedFolder(FolderFiles):
    """A folder that several servers write to."""

    def names(self, folder: Folder) -> list[str]:
        """All names, but those that another server may be writing."""
        found = []
        for file in (self._root / folder).iterdir():
            with suppress(FileNotFoundError):  # it has got its name, or was removed
                if not file.name.startswith(".") or file.stat().st_mtime < time.time() - _UNFINISHED:
                    found.append(file.name)
        return found


class RemoteFiles:
    """Objects of a store such as S3, by fsspec. An object is there whole or not at all."""

    def __init__(self, address: str) -> None:
        """Raises `StateError`, or `BackendError` where a package is missing."""
        import fsspec

        self._address = address
        try:
            self._system, self._root = fsspec.core.url_to_fs(address, use_listings_cache=False)
        except ImportError as error:
            raise BackendError(f"--state-files {address}: {error}") from error
        except Exception as error:
            raise StateError(f"{address} cannot be used: {type(error).__name__}: {error}") from error

    def _do(self, operation: str, *args: Any, **options: Any) -> Any:
        """What the libraries raise is of many kinds; here it is what a disk would raise."""
        try:
            return getattr(self._system, operation)(*args, **options)
        except FileNotFoundError:
            raise
        except Exception as error:
            raise OSError(f"{self._address}: {type(error).__name__}: {error}") from error

    def _path(self, *parts: str) -> str:
        return "/".join((self._root.rstrip("/"), *parts))

    def write(self, folder: Folder, name: str, data: bytes) -> None:
        """Put the object."""
        self._do("pipe_file", self._path(folder, name), data)

    def read(self, folder: Folder, name: str) -> bytes | None:
        """The object; None if it is not there."""
        try:
            data: bytes = self._do("cat_file", self._path(folder, name))
            return data
        except FileNotFoundError:
            return None

    def names(self, folder: Folder) -> list[str]:
        """The names of all objects."""
        try:
            found = self._do("ls", self._path(folder), detail=False)
        except FileNotFoundError:
            return []
        return [path.rstrip("/").rpartition("/")[2] for path in found]

    def remove(self, folder: Folder, name: str) -> None:
        """Remove an object."""
        with suppress(FileNotFoundError):
            self._do("rm_file", self._path(folder, name))


def shared_files(place: Path | str, store: str, *, is_new: bool) -> Files:
    """Files at a place, which is checked to be that of the store with this id.

    Args:
        place: a folder, which is made if it is not there, or an address such as s3://bucket/folder.
        is_new: whether the store has had no files yet, so that the place may be new, too.

    Raises: StateError: the place cannot be used, or has files of another store or none of this one.
    """
    if isinstance(place, str) and (place.startswith("file://") or "://" not in place):
        place = Path(place.removeprefix("file://"))  # fsspec writes files in place, not whole
    try:
        if isinstance(place, Path):
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
        files: Files = SharedFolder(place) if isinstance(place, Path) else RemoteFiles(place)
        found = files.read("marks", _MARK)
        if found is None and is_new:
            files.write("marks", _MARK, store.encode())
            found = files.read("marks", _MARK)
    except OSError as error:
        raise StateError(f"the files of jobs at {place} cannot be used: {error}") from error
    if found != store.encode():
        whose = "does not have the files" if found is None else "has files of another database than those"
        raise StateError(f"{place} {whose} of these jobs: expected a place that all servers of the database share")
    return files
