"""Add engines to a bundle or to a separate folder, under a lock. Knows nothing of how engines are built."""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from latentrt.runtime.bundle import Bundle, EngineList, EngineRecord, File
from latentrt.runtime.bundle.engine_list import updated_manifest
from latentrt.runtime.bundle.strict_json import encode
from latentrt.runtime.errors import BackendError, ExportError, InputError, unknown
from latentrt.runtime.files import written_whole

FOLDER = "engines"


@dataclass(frozen=True, slots=True, eq=False)
class Built:
    """An engine in the list: its record, size in bytes and build time; `seconds` is None if it already existed."""

    record: EngineRecord
    size: int
    seconds: float | None


def require_unaltered(bundle: Bundle, graphs: Sequence[str]) -> None:
    """Raise `InputError` for unknown graphs, and `ExportError` if a graph's files differ from the manifest.

    Args:
        graphs: names of graphs; empty is all.
    """
    known = bundle.manifest.graphs
    for name in graphs:
        if name not in known:
            raise InputError(f"{bundle.path}: {unknown('graph', name, known)}")
    files = [f for name in graphs or known for f in (known[name].file, f"{known[name].file}.data")]
    altered = bundle.altered_files(only=files)
    if altered:
        raise ExportError(f"{bundle.path}: altered: {', '.join(altered)}. Copy the bundle again, or export it again.")


def with_file(record: EngineRecord, kind: str) -> EngineRecord:
    """The record with a unique file name, derived from its other fields; `kind` is the suffix."""
    key = hashlib.sha256(json.dumps(encode(record), sort_keys=True).encode()).hexdigest()[:12]
    return replace(record, file=f"{FOLDER}/{record.graph}-{key}.{kind}")


def built_before(bundle_path: Path, engines: Path | None, record: EngineRecord) -> Built | None:
    """The existing engine with the same record, or None if there is none or its file is damaged."""
    present = EngineList.of_bundle(Bundle.open(bundle_path), engines)
    same = next((r for r in present.engines if r.file == record.file and present.intact(r)), None)
    return None if same is None else Built(same, present.files[same.file].size, None)


def add_engine(bundle_path: Path, engines: Path | None, record: EngineRecord, content: bytes) -> None:
    """Write an engine's file, then the list that names it; removes files that the list no longer names.

    Args:
        engines: folder for engines; None is the bundle's own.
        content: the file's content.

    Raises `BackendError` if the folder is not writable.
    """
    folder = bundle_path if engines is None else engines
    try:
        (folder / FOLDER).mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            bundle = Bundle.open(bundle_path)
            present = EngineList.of_bundle(bundle, engines)
            with written_whole(folder / record.file) as file:
                file.write_bytes(content)
            replaced = [r for r in present.engines if _serves_the_same(r, record)]
            kept = tuple(r for r in present.engines if r not in replaced)
            files = {n: f for n, f in present.files.items() if n not in {r.file for r in replaced}}
            files[record.file] = File(len(content), hashlib.sha256(content).hexdigest())
            target, text = updated_manifest(bundle, engines, EngineList(folder, (*kept, record), files))
            with written_whole(target) as file:
                file.write_text(text, encoding="utf-8")
            # Files that the list does not name were replaced, or left by a process that was killed here.
            for left in (folder / FOLDER).iterdir():
                if f"{FOLDER}/{left.name}" not in files:
                    left.unlink()
    except PermissionError as error:
        raise BackendError(f"cannot write to {folder} ({error}); store engines elsewhere with --engines DIR") from error


def _serves_the_same(old: EngineRecord, new: EngineRecord) -> bool:
    """Whether `new` replaces `old`: the same graph, library, GPUs and sizes."""
    names = ("graph", "backend", "version", "device", "compute_capabilities", "profile")
    return all(getattr(old, name) == getattr(new, name) for name in names)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold an exclusive lock on the folder; the operating system releases it if the process dies."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
