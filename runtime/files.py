"""Files that are written whole or not at all, places that can be written, hashes of files, and the cache folder."""

import errno
import os
import shutil
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

if sys.platform != "win32":
    import fcntl

_PROBE = 1 << 16  # bytes that a place must have room for


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


def sha256_of_file(path: Path, progress: Callable[[int], object] = lambda _: None) -> str:
    """Hex sha256 of a file, read in blocks of 4 MiB; `progress` gets the size of each block."""
    import hashlib  # imported here because opening a bundle does not need it

    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
            progress(len(block))
    return digest.hexdigest()


def cache_folder() -> Path:
    """Folder for files that can be made again: $XDG_CACHE_HOME/latentrt, or ~/.cache/latentrt."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "latentrt"
