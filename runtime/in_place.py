"""A folder that is put in place whole: made beside its place, then moved there in one step.

A process that makes one holds a lock on it. What a killed process left has no lock, and is removed by the next one
with the same place. Knows nothing of bundles.
"""

import ctypes
import errno
import logging
import os
import re
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .files import lock

logger = logging.getLogger(__name__)

_OLD = ".old"
_CURRENT_FOLDER = -100  # AT_FDCWD
_EXCHANGE = 2  # RENAME_EXCHANGE
_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG


@contextmanager
def folder_put_in_place(out: Path) -> Iterator[Path]:
    """Yield a new folder that becomes `out` when the block ends, and is removed if it raises.

    Whatever happens, also a kill, `out` is the old folder or the new one, each of them whole. Where the file system
    cannot exchange two folders, a kill at the wrong moment leaves the old one under another name, from which
    `clear_leftovers` puts it back.
    """
    place = out.resolve()
    place.parent.mkdir(parents=True, exist_ok=True)
    folder, handle = _made_beside(place)
    try:
        yield folder
        _move(folder, place)
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # after an exchange, this is the old one
        if handle is not None:
            os.close(handle)


def clear_leftovers(out: Path) -> None:
    """Remove what killed processes left beside `out`, or put it back if it is `out`; a line in the log for each."""
    place = out.resolve()
    pattern = re.compile(rf"\.{re.escape(_short(place.name))}\.[0-9a-f]{{8}}({re.escape(_OLD)})?")
    try:
        left = sorted(entry for entry in place.parent.iterdir() if pattern.fullmatch(entry.name))
    except OSError:
        return
    for folder in left:
        owner = folder.with_name(folder.name.removesuffix(_OLD))
        try:
            handle = lock(owner)
            if handle is None and owner.exists():
                continue  # its owner lives
        except OSError:
            continue  # nobody can tell
        try:
            _clear(folder, place)
        except OSError as error:
            logger.warning("%s, which a killed process left, cannot be removed: %s", folder, error)
        finally:
            if handle is not None:
                os.close(handle)


def _clear(folder: Path, place: Path) -> None:
    if folder.name.endswith(_OLD) and not os.path.lexists(place):
        folder.rename(place)
        logger.warning("%s: put back; a process that was to replace it was killed", place)
        return
    size = sum(file.lstat().st_size for file in folder.rglob("*"))
    shutil.rmtree(folder)
    logger.warning("removed %s (%s MiB), which a killed process left", folder, f"{size / 2**20:,.1f}")


def _short(name: str) -> str:
    """The part of a name that fits beside the other parts of a temporary name."""
    return os.fsencode(name)[:200].decode(errors="ignore")


def _made_beside(place: Path) -> tuple[Path, int | None]:
    """A new folder and the lock on it; None where the file system has no locks."""
    while True:
        folder = place.with_name(f".{_short(place.name)}.{os.urandom(4).hex()}")
        folder.mkdir()
        try:
            if (handle := lock(folder)) is not None:
                return folder, handle
        except OSError:
            return folder, None


def _move(folder: Path, place: Path) -> None:
    if not os.path.lexists(place):
        folder.rename(place)
        return
    if exchange(folder, place):
        return
    old = folder.with_name(folder.name + _OLD)
    try:
        place.rename(old)
        folder.rename(place)
    except BaseException:
        if os.path.lexists(old) and not os.path.lexists(place):
            old.rename(place)
        raise
    shutil.rmtree(old, ignore_errors=True)


def exchange(one: Path, other: Path) -> bool:
    """Exchange two paths in one step; returns False where the system or the file system cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if sys.platform == "linux" else None
    if rename is None:
        return False
    names = os.fsencode(one), os.fsencode(other)
    if rename(_CURRENT_FOLDER, names[0], _CURRENT_FOLDER, names[1], _EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(number, os.strerror(number), str(one), None, str(other))


def end_with_parent(parent: int) -> None:
    """Have the system kill this process when the process `parent`, which started it, ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:  # it has ended before
        sys.exit(1)
