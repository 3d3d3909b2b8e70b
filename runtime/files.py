"""Reading files that somebody else wrote, atomic writes, hashes of files, and the cache folder."""

import json
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

MAX_JSON = 1 << 26  # bytes; the manifest of SDXL takes 1 MB


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file for reading; raises `OSError` for folders, pipes and devices, which may never end."""
    try:
        number = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except ValueError as error:  # a NUL in the name
        raise OSError(str(error)) from error
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise OSError("it is not a file, but a folder, a pipe or a device")
    return os.fdopen(number, "rb")


def read_json(path: Path, *, unique: bool = False) -> Any:
    """Parse a JSON file; raises `OSError`, or `ValueError` for invalid JSON and files of more than 64 MiB.

    Args:
        unique: refuse objects that have a key twice.
    """
    with open_regular(path) as file:
        data = file.read(MAX_JSON + 1)
    if len(data) > MAX_JSON:
        raise ValueError(f"the file has more than {MAX_JSON >> 20} MiB")
    try:
        return json.loads(data.decode("utf-8-sig"), object_pairs_hook=_unique if unique else None)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)[:80]!r} occurs twice")
    return result


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it replaces `path` when the block ends, and is removed if it raises.

    The temporary name is unique and keeps the suffix. Missing parent folders are made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.urandom(4).hex()}.partial{path.suffix}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def files_in_one_folder(*paths: Path) -> Iterator[Path]:
    """A folder with these files, for libraries that refuse links out of their folder.

    Their own one, if they share it and none is a link; else a temporary one with hard links, or with copies where those
    are impossible. Files that do not exist are left out.
    """
    if not any(path.is_symlink() for path in paths) and len({path.parent for path in paths}) == 1:
        yield paths[0].parent
        return
    import shutil  # imported here because only links need them
    import tempfile

    with tempfile.TemporaryDirectory(prefix="latentrt-") as folder:
        for path in paths:
            if path.is_file():
                try:
                    os.link(path.resolve(), Path(folder) / path.name)
                except OSError:  # another file system
                    shutil.copyfile(path, Path(folder) / path.name)
        yield Path(folder)


def sha256_of_file(path: Path, progress: Callable[[int], object] = lambda _: None) -> str:
    """Hex sha256 of a file, read in blocks of 4 MiB; `progress` gets the size of each block."""
    import hashlib  # imported here because opening a bundle does not need it

    digest = hashlib.sha256()
    with open_regular(path) as file:
        while block := file.read(1 << 22):
            digest.update(block)
            progress(len(block))
    return digest.hexdigest()


def cache_folder() -> Path:
    """Folder for files that can be made again: $XDG_CACHE_HOME/latentrt, or ~/.cache/latentrt.

    Raises `OSError` where there is no home folder, as for a user without an entry in /etc/passwd.
    """
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "latentrt"
    except RuntimeError as error:
        raise FileNotFoundError(f"{error} Set XDG_CACHE_HOME") from error
