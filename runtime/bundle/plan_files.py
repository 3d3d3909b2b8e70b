"""Plan packs of a bundle: which files they are, and how one is added. Knows nothing of what is in them."""

import hashlib
from contextlib import suppress
from pathlib import Path

from latentrt.runtime.errors import BundleError
from latentrt.runtime.files import locked, not_written, require_writable, written_whole

from .bundle import Bundle
from .manifest import MANIFEST, File, manifest_json, with_plans

FOLDER = "plans"


def pack_name(content: bytes) -> str:
    """The file of a pack in a bundle: one content has one name."""
    return f"{FOLDER}/{hashlib.sha256(content).hexdigest()[:12]}.bin"


def add_pack(path: Path, content: bytes, *, replace: bool = False) -> Path:
    """Write a pack into a bundle, then the manifest that names it, under a lock; returns the pack's file.

    Args:
        replace: whether the other packs go.

    Whatever happens, also a kill, the bundle is the old one or the new one. Raises `BundleError` if its folder cannot
    be written.
    """
    name = pack_name(content)
    file = path / name
    try:
        with locked(path):
            manifest = Bundle.open(path).manifest
            with written_whole(file) as temporary:
                temporary.write_bytes(content)
            kept = () if replace else tuple(pack for pack in manifest.plans if pack != name)
            files = {n: f for n, f in manifest.files.items() if n not in manifest.plans or n in kept}
            files[name] = File(len(content), hashlib.sha256(content).hexdigest())
            file = path / MANIFEST
            with written_whole(file) as temporary:
                temporary.write_text(manifest_json(with_plans(manifest, (*kept, name), files)), encoding="utf-8")
            _remove_unlisted(path / FOLDER, {Path(n).name for n in (*kept, name)})
    except OSError as error:
        raise BundleError(_cannot_store(file, error)) from error
    return path / name


def require_place_for_pack(path: Path) -> None:
    """Raise `BundleError` if a pack cannot be written into the bundle, before the time is spent to compile it."""
    for file in (path / FOLDER / "plans.bin", path / MANIFEST):
        try:
            require_writable(file)
        except OSError as error:
            raise BundleError(_cannot_store(file, error)) from error


def _cannot_store(file: Path, error: OSError) -> str:
    return f"{not_written(file, error)}; write the plans elsewhere with --out FILE"


def _remove_unlisted(folder: Path, listed: set[str]) -> None:
    """Remove packs that were replaced, and those that a process wrote and was killed before it named them."""
    for file in folder.iterdir():
        if file.name not in listed and file.suffix == ".bin":
            with suppress(IsADirectoryError, FileNotFoundError):
                file.unlink()
