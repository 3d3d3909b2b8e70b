"""Make the working tree light while wheels are transferred: the model and the tests' data move out of it and back.

    python -m benchmarks.gpu.light [--carry FOLDER] -- COMMAND …    # light while COMMAND runs
    python -m benchmarks.gpu.light [--carry FOLDER]                 # until Enter, the end of input, or a signal
    python -m benchmarks.gpu.light --restore                        # after a kill

For transfers that take the files of the tree, but not those that git ignores, and have a limit. What is heavy lies in
`build/light`, which is ignored, and comes back at the end, also after an error or a signal; after a kill the next call
brings it back. Nothing is copied or overwritten. FOLDER is an ignored folder that is transferred as well; the bytes of
all are printed, and a tree that is above the limit is refused.

Standard library only.
"""

import argparse
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

HEAVY = ("engines/shapes", "tests/data")
STORE = Path("build/light")
LIMIT = 64 * 2**20  # bytes of one transfer
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class LightError(Exception):
    """The tree cannot be made light, or not whole again; nothing was lost."""


def sent_files(root: Path, carried: Sequence[Path] = ()) -> dict[Path, int]:
    """Bytes of every file that a transfer takes: tracked, untracked and not ignored, and in carried folders."""
    command = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, capture_output=True, check=True).stdout.decode().split("\0")
    files = {root / name for name in names if name}
    files |= {file for folder in carried for file in (root / folder).rglob("*")}
    return {file: file.lstat().st_size for file in files if file.is_file() and not file.is_symlink()}


def light_bytes(root: Path) -> int:
    """Bytes of a transfer of the light tree alone."""
    heavy = tuple(f"{root / name}{os.sep}" for name in HEAVY)
    return sum(size for file, size in sent_files(root).items() if not str(file).startswith(heavy))


@contextmanager
def light_tree(root: Path) -> Iterator[None]:
    """Without the heavy folders inside the block. Raises `LightError` if another process has them moved."""
    store = root / STORE
    store.mkdir(parents=True, exist_ok=True)
    with (store / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LightError(f"{root} is light already: another process waits with its folders in {store}") from None
        restore(root)
        try:
            for name in HEAVY:
                (store / name).parent.mkdir(parents=True, exist_ok=True)
                (root / name).rename(store / name)
            yield
        finally:
            restore(root)


def restore(root: Path) -> list[str]:
    """Move back whatever lies in the store; the names of what was moved.

    Raises:
        LightError: something else is in a folder's place. Both are left as they are.
    """
    moved = []
    for name in HEAVY:
        kept, place = root / STORE / name, root / name
        if not kept.exists():
            continue
        if place.exists() and (not place.is_dir() or any(place.iterdir())):
            raise LightError(f"{place} exists, and so does {kept}: remove one, and call again with --restore")
        place.parent.mkdir(parents=True, exist_ok=True)
        kept.rename(place)  # replaces an empty folder
        moved.append(name)
    return moved


def main() -> int:
    """The command; its status is that of COMMAND, or 2 if the tree could not be made light or whole."""
    parser = argparse.ArgumentParser(description="Make the working tree light for a transfer, and whole again.")
    parser.add_argument("--carry", type=Path, action="append", default=[], help="ignored folder that is sent as well")
    parser.add_argument("--limit", type=int, default=LIMIT, metavar="BYTES", help=f"default: {LIMIT:,}")
    parser.add_argument("--restore", action="store_true", help="only bring back what a killed call has left away")
    parser.add_argument("command", nargs="*", help="default: wait for Enter")
    arguments = parser.parse_args()
    root = Path.cwd()
    for number in SIGNALS:
        signal.signal(number, _stop)
    try:
        if arguments.restore:
            print(", ".join(restore(root)) or "nothing was away")
            return 0
        with light_tree(root):
            sizes = sent_files(root, arguments.carry)
            total = sum(sizes.values())
            print(f"{total:,} bytes in {len(sizes)} files, of at most {arguments.limit:,}", flush=True)
            if total > arguments.limit:
                raise LightError("too large for one transfer: carry less, or raise --limit")
            if arguments.command:
                return subprocess.run(arguments.command, check=False).returncode
            print("light; Enter makes the tree whole again", flush=True)
            sys.stdin.readline()
            return 0
    except LightError as error:
        print(f"light: {error}", file=sys.stderr)
        return 2


def _stop(number: int, _: FrameType | None) -> None:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
