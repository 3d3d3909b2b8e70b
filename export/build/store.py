"""Engines added to a bundle or to a folder of their own, one process at a time."""

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
from latentrt.runtime.errors import BackendError, ExportError, InputError, nearest_names

FOLDER = "engines"


@dataclass(frozen=True, slots=True, eq=False)
class Built:
    """An engine that is now there. `seconds` is None where it was there before."""

    record: EngineRecord
    size: int
    seconds: float | None


def require_unaltered(bundle: Bundle, graphs: Sequence[str]) -> None:
    """Refuse names of graphs that a bundle does not have, and graphs whose files are not those of its manifest."""
    known = bundle.manifest.graphs
    for name in graphs:
        if name not in known:
            near = nearest_names(name, known)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(known)}"
            raise InputError(f"{bundle.path} has no graph {name!r}; {hint}")
    files = [f for name in graphs or known for f in (known[name].file, f"{known[name].file}.data")]
    altered = bundle.altered_files(only=files)
    if altered:
        raise ExportError(f"{bundle.path}: altered: {', '.join(altered)}. Copy the bundle again, or export it again.")


def with_file(record: EngineRecord, kind: str) -> EngineRecord:
    """The record with the name of its file, which only keeps files apart; what an engine is stands in the record."""
    key = hashlib.sha256(json.dumps(encode(record), sort_keys=True).encode()).hexdigest()[:12]
    return replace(record, file=f"{FOLDER}/{record.graph}-{key}.{kind}")


def built_before(bundle_path: Path, engines: Path | None, record: EngineRecord) -> Built | None:
    """The same engine where it is there already, and whole."""
    present = EngineList.of_bundle(Bundle.open(bundle_path), engines)
    same = next((r for r in present.engines if r.file == record.file and present.intact(r)), None)
    return None if same is None else Built(same, present.files[same.file].size, None)


def add_engine(bundle_path: Path, engines: Path | None, record: EngineRecord, plan: bytes) -> None:
    """Put an engine and its record in place: the file first, the list that names it last."""
    folder = bundle_path if engines is None else engines
    try:
        (folder / FOLDER).mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            bundle = Bundle.open(bundle_path)
            present = EngineList.of_bundle(bundle, engines)
            file = folder / record.file
            partial = file.with_suffix(".partial")
            partial.write_bytes(plan)
            partial.replace(file)
            replaced = [r for r in present.engines if _serves_the_same(r, record)]
            kept = tuple(r for r in present.engines if r not in replaced)
            files = {n: f for n, f in present.files.items() if n not in {r.file for r in replaced}}
            files[record.file] = File(len(plan), hashlib.sha256(plan).hexdigest())
            target, text = updated_manifest(bundle, engines, EngineList(folder, (*kept, record), files))
            partial = target.with_suffix(".partial")
            partial.write_text(text, encoding="utf-8")
            partial.replace(target)
            # What the list does not name was replaced, or left by a process that was killed here.
            for left in (folder / FOLDER).iterdir():
                if f"{FOLDER}/{left.name}" not in files:
                    left.unlink()
    except PermissionError as error:
        raise BackendError(f"{folder} cannot be written ({error}); keep engines elsewhere: --engines DIR") from error


def _serves_the_same(old: EngineRecord, new: EngineRecord) -> bool:
    """Whether `new` makes `old` superfluous: the same purpose, or the same graph as it was before a new export."""
    names = ("graph", "backend", "version", "device", "compute_capabilities", "profile")
    return all(getattr(old, name) == getattr(new, name) for name in names)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Nobody else changes the list meanwhile; the lock ends with this process, whatever happens to it."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
