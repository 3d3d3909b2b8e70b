"""Atomic writes, hashes of files, and the cache folder."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


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
