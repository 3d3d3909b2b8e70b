"""The files of a state folder: given pictures by their hash, results by job and claim. Knows nothing of jobs."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Literal, Protocol

from latentrt.runtime.files import written_whole

Folder = Literal["inputs", "results", "marks"]
FOLDERS: tuple[Folder, ...] = ("inputs", "results")


class Files(Protocol):
    """Bytes under names, in two folders."""

    def write(self, folder: Folder, name: str, data: bytes) -> None:
        """Keep bytes; they are there after a loss of power. The same name has the same bytes each time."""

    def read(self, folder: Folder, name: str) -> bytes | None:
        """The bytes under a name; None if there are none."""

    def names(self, folder: Folder) -> list[str]:
        """All names, also those of files that were not finished."""

    def remove(self, folder: Folder, name: str) -> None:
        """Forget a name; nothing happens if it is not there."""


class FolderFiles:
    """Files in a state folder, written whole and flushed before their name appears."""

    def __init__(self, root: Path) -> None:
        """`root` must be there; its folders are made."""
        self._root = root
        for folder in FOLDERS:
            (root / folder).mkdir(mode=0o700, exist_ok=True)
        flush_folder(root)

    def write(self, folder: Folder, name: str, data: bytes) -> None:
        """Write, flush, rename, flush the folder."""
        path = self._root / folder / name
        if folder != "inputs" or not path.exists():  # a given picture of this hash is there whole, or not at all
            with written_whole(path) as temporary, temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        flush_folder(path.parent)

    def read(self, folder: Folder, name: str) -> bytes | None:
        """The bytes of a file; None if it is not there."""
        try:
            return (self._root / folder / name).read_bytes()
        except FileNotFoundError:
            return None

    def names(self, folder: Folder) -> list[str]:
        """The names of all files, those that a killed process left unfinished included."""
        return [file.name for file in (self._root / folder).iterdir()]

    def remove(self, folder: Folder, name: str) -> None:
        """Remove a file."""
        with suppress(FileNotFoundError):
            (self._root / folder / name).unlink()


def flush_folder(folder: Path) -> None:
    """Make the names in a folder last through a loss of power."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
