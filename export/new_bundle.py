"""A folder for a new bundle: whether it may be made, and errors of the file system as `ExportError`."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from latentrt.runtime.errors import ExportError
from latentrt.runtime.in_place import clear_leftovers, folder_put_in_place


def require_free(out: Path, *, overwrite: bool) -> None:
    """Remove what killed processes left beside `out`; raise `ExportError` unless a bundle may be put there."""
    clear_leftovers(out)
    if os.path.lexists(out) and not overwrite:
        raise ExportError(f"{out} already exists. Choose another folder, or replace it with --overwrite.")
    if out.exists() and not out.is_dir():
        raise ExportError(f"{out} is not a folder: choose another name for the bundle")


@contextmanager
def new_bundle(out: Path, what: str, needs: str) -> Iterator[Path]:
    """`folder_put_in_place`, with errors of the file system told as `ExportError`.

    Args:
        what: what makes the bundle, such as "export".
        needs: a sentence about the space that it takes.
    """
    try:
        with folder_put_in_place(out) as folder:
            yield folder
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = shutil.disk_usage(next(f for f in out.absolute().parents if f.exists())).free
            raise ExportError(
                f"the disk of {out.parent} is full ({free / 2**20:,.0f} MiB free); the new bundle has been removed. "
                f"{needs}"
            ) from error
        raise ExportError(f"the {what} to {out} failed: {error}") from error
