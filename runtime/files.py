"""Files of others read safely, files written whole or not at all, places that can be written, hashes, and the cache.

Knows nothing of what is in them.
"""

import errno
import json
import os
import shutil
import stat
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

if sys.platform != "win32":
    import fcntl

_PROBE = 1 << 16  # bytes that a place must have room for
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

    The temporary file is there and empty. Its name is short, keeps the suffix and depends only on `path`: what a
    killed process left is used by the next one that writes `path`. Missing parent folders are made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, handle = _temporary(path)
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    finally:
        # Held until here: from now on, the name may belong to another process.
        if handle is not None:
            os.close(handle)


def require_writable(path: Path) -> None:
    """Raise `OSError` if no file can be written at `path`. Makes no folders."""
    with suppress(FileNotFoundError):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder", str(path))
        path.lstat()  # whether the name is too long
    folder = next((f for f in path.parents if os.path.lexists(f)), path.parent)
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, f"{folder} is not a folder", str(path))
    temporary, handle = _temporary(folder / path.name)
    try:
        temporary.write_bytes(bytes(_PROBE))
    finally:
        with suppress(OSError):
            temporary.unlink()
        if handle is not None:
            os.close(handle)


def not_written(path: Path, error: OSError) -> str:
    """One line that says what cannot be written, in which folder, and why."""
    folder = path.parent
    with suppress(OSError):  # the working directory may have been deleted
        folder = folder.absolute()
    reason = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        with suppress(OSError):
            reason += f" ({shutil.disk_usage(folder).free / 2**20:,.1f} MiB free)"
    return f"{path.name} cannot be written in the folder {folder}: {reason}"


def lock(path: Path, flags: int = os.O_RDONLY) -> int | None:
    """A descriptor that holds an exclusive lock on a file or folder until it is closed or the process ends.

    None if another process holds the lock, or if `path` is not there (any more). Raises `OSError` where the file
    system has no locks.
    """
    if sys.platform == "win32":
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
    try:
        handle = os.open(path, flags | os.O_NOFOLLOW, 0o666)
    except FileNotFoundError:
        if flags & os.O_CREAT:
            raise
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Its owner may have renamed or removed it between the two calls above.
        if os.path.samestat(os.fstat(handle), path.lstat()):
            return handle
    except (BlockingIOError, FileNotFoundError):
        pass
    except OSError:
        os.close(handle)
        raise
    os.close(handle)
    return None


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold an exclusive lock on the folder; the operating system releases it if the process dies."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        if sys.platform != "win32":
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _temporary(path: Path) -> tuple[Path, int | None]:
    """An empty file beside `path` that belongs to this process, and its lock; None where files have no locks."""
    suffix = path.suffix if len(path.suffix) <= 16 else ""
    name = os.fsencode(path.name)
    start = f".{name[:40].decode(errors='ignore').removesuffix(suffix)}.{zlib.crc32(name):08x}"
    for number in range(1000):
        temporary = path.with_name(f"{start}.{number}.partial{suffix}")
        try:
            handle = lock(temporary, os.O_RDWR | os.O_CREAT)
        except OSError as error:
            if error.errno in (errno.ENOLCK, errno.EBADF, errno.ENOSYS, errno.ENOTSUP):
                break
            if not os.path.lexists(temporary):
                raise
            continue  # it is of another user
        if handle is not None:
            os.ftruncate(handle, 0)
            return temporary, handle
    temporary = path.with_name(f"{start}.{os.urandom(4).hex()}.partial{suffix}")
    temporary.touch()
    return temporary, None


COPIED = 1 << 24  # bytes; files below are copied rather than linked


@contextmanager
def files_in_one_folder(*paths: Path) -> Iterator[Path]:
    """A folder with these files, for libraries that refuse links out of their folder.

    Their own one, if they share it and none is a link; else a temporary one with hard links, or with copies, of small
    files and where links are impossible. Files that do not exist are left out.
    """
    if not any(path.is_symlink() for path in paths) and len({path.parent for path in paths}) == 1:
        yield paths[0].parent
        return
    import tempfile  # imported here because only links need it

    with tempfile.TemporaryDirectory(prefix="latentrt-") as folder:
        for path in paths:
            if path.is_file():
                place = Path(folder) / path.name
                if path.stat().st_size < COPIED:  # meanwhile, onnx-ir reads no file that has two names
                    shutil.copyfile(path, place)
                    continue
                try:
                    os.link(path.resolve(), place)
                except OSError:  # another file system
                    shutil.copyfile(path, place)
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
