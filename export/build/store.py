"""Add engines to a bundle or to a separate folder, under a lock. Knows nothing of how engines are built."""

import hashlib
import json
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from latentrt.runtime.bundle import AnyBundle, EngineList, EngineRecord, File, open_bundle
from latentrt.runtime.bundle.engine_list import remember_hash, updated_manifest
from latentrt.runtime.bundle.manifest import MANIFEST
from latentrt.runtime.bundle.strict_json import encode
from latentrt.runtime.errors import BackendError, ExportError, InputError, unknown
from latentrt.runtime.files import locked, not_written, require_writable, sha256_of_file, written_whole
from latentrt.runtime.in_place import clear_leftovers

FOLDER = "engines"
_SAVING = ".saving"  # folder in which a graph is saved before it is put in place


@dataclass(frozen=True, slots=True, eq=False)
class Built:
    """An engine in the list: its record, size in bytes and build time; `seconds` is None if it already existed.

    Attributes:
        attempts: milliseconds of a run of each build, where several were made to keep the fastest.
    """

    record: EngineRecord
    size: int
    seconds: float | None
    attempts: tuple[float, ...] = ()


def require_unaltered(bundle: AnyBundle, graphs: Sequence[str]) -> None:
    """Raise `InputError` for unknown graphs, and `ExportError` if a graph's files differ from the manifest.

    Args:
        graphs: names of graphs; empty is all.
    """
    known = bundle.manifest.graphs
    for name in graphs:
        if name not in known:
            raise InputError(f"{bundle.path}: {unknown('graph', name, known)}")
    files = [file for name in graphs or known for file in known[name].files]
    altered = bundle.altered_files(only=files)
    if altered:
        raise ExportError(f"{bundle.path}: altered: {', '.join(altered)}. Copy the bundle again, or export it again.")


def with_file(record: EngineRecord, kind: str) -> EngineRecord:
    """The record with a unique file name, derived from its other fields; `kind` is the suffix."""
    key = hashlib.sha256(json.dumps(encode(record), sort_keys=True).encode()).hexdigest()[:12]
    return replace(record, file=f"{FOLDER}/{record.graph}-{key}.{kind}")


def built_before(bundle_path: Path, engines: Path | None, record: EngineRecord) -> Built | None:
    """The existing engine with the same record, or None if there is none or its file is damaged."""
    present = EngineList.of_bundle(open_bundle(bundle_path), engines)
    same = next((r for r in present.engines if r.file == record.file and present.intact(r)), None)
    if same is None:
        return None
    sizes = [listed.size for name, listed in present.files.items() if name in (same.file, f"{same.file}.data")]
    return Built(same, sum(sizes), None)


def with_layers(record: EngineRecord) -> EngineRecord:
    """The record with the name of a file for its layers, beside the engine."""
    return replace(record, layers=f"{record.file.rpartition('.')[0]}.layers.json")


def add_engine(
    bundle_path: Path, engines: Path | None, record: EngineRecord, content: bytes, layers: bytes = b""
) -> None:
    """Write an engine's files, then the list that names them; removes files that the list no longer names.

    Args:
        engines: folder for engines; None is the bundle's own.
        content: the engine file's content.
        layers: content of `record.layers`, if the record has one.

    Raises `BackendError` if the folder cannot be written.
    """
    new = {record.file: content} | ({record.layers: layers} if record.layers else {})

    def write(folder: Path) -> dict[str, File]:
        for name, written in new.items():
            with written_whole(folder / name) as temporary:
                temporary.write_bytes(written)
        return {name: File(len(it), hashlib.sha256(it).hexdigest()) for name, it in new.items()}

    _change(bundle_path, engines, [record], lambda old: _serves_the_same(old, record), write)


def add_saved_graph(
    bundle_path: Path, engines: Path | None, record: EngineRecord, save: Callable[[Path], object]
) -> int:
    """As `add_engine`, for a graph that `save(path)` writes to a path, with its external data in `<path>.data`.

    Returns the size of both files in bytes. They are written in a folder of their own, while the other one is locked;
    what a killed process left of it is removed by the next one that writes.
    """
    file = Path(record.file)

    def write(folder: Path) -> dict[str, File]:
        made = folder / FOLDER / _SAVING
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir()
        try:
            save(made / file.name)
            names = [name for name in (file.name, f"{file.name}.data") if (made / name).is_file()]
            hashes = {name: sha256_of_file(made / name) for name in names}
            for name in reversed(names):  # the weights first
                (made / name).replace(folder / FOLDER / name)
                remember_hash(folder / FOLDER / name, hashes[name])
        finally:
            shutil.rmtree(made, ignore_errors=True)
        return {f"{FOLDER}/{n}": File((folder / FOLDER / n).stat().st_size, it) for n, it in hashes.items()}

    replaced = lambda old: old.saved and old.graph == record.graph  # noqa: E731
    return sum(file.size for file in _change(bundle_path, engines, [record], replaced, write).values())


def remove_saved_graphs(bundle_path: Path, engines: Path | None, graphs: Collection[str]) -> None:
    """Remove the saved graphs of these names from the list, and their files."""
    present = EngineList.of_bundle(open_bundle(bundle_path), engines)
    if any(old.saved and old.graph in graphs for old in present.engines):
        _change(bundle_path, engines, [], lambda old: old.saved and old.graph in graphs, lambda _: {})


def _change(
    bundle_path: Path,
    engines: Path | None,
    new: Sequence[EngineRecord],
    replaced: Callable[[EngineRecord], bool],
    write: Callable[[Path], dict[str, File]],
) -> dict[str, File]:
    """Let `write(folder)` write files, then the list without `replaced` and with `new`; returns the files."""
    folder = bundle_path if engines is None else engines
    file = folder / (new[0].file if new else MANIFEST)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder):
            bundle = open_bundle(bundle_path)
            present = EngineList.of_bundle(bundle, engines)
            written = write(folder)
            kept = tuple(r for r in present.engines if not replaced(r))
            gone = {name for r in present.engines if replaced(r) for name in (r.file, f"{r.file}.data", r.layers)}
            files = {name: listed for name, listed in present.files.items() if name not in gone} | written
            file, text = updated_manifest(bundle, engines, EngineList(folder, (*kept, *new), files))
            with written_whole(file) as temporary:
                temporary.write_text(text, encoding="utf-8")
            _remove_unlisted(folder, files)
    except OSError as error:
        raise _cannot_store(file, error) from error
    return written


def require_storable(bundle_path: Path, engines: Path | None) -> None:
    """Raise `BackendError` if engines cannot be written, before the time is spent to build one."""
    folder = bundle_path if engines is None else engines
    for file in (folder / FOLDER / "engines", folder / MANIFEST):
        try:
            require_writable(file)
        except OSError as error:
            raise _cannot_store(file, error) from error


def clear_killed(bundle_path: Path, engines: Path | None) -> None:
    """Remove what killed exports and builds of this bundle left; errors are ignored."""
    clear_leftovers(bundle_path)
    folder = bundle_path if engines is None else engines
    with suppress(OSError):
        if (folder / FOLDER).is_dir():
            with locked(folder):
                _remove_unlisted(folder, EngineList.of_bundle(open_bundle(bundle_path), engines).files)


def _remove_unlisted(folder: Path, files: Mapping[str, File]) -> None:
    """Remove engines that were replaced, and files left by a process that was killed while it held the lock."""
    left = [file for file in (folder / FOLDER).iterdir() if f"{FOLDER}/{file.name}" not in files]
    left += folder.glob(".*.partial.json")
    for file in left:
        if file.name == _SAVING:
            shutil.rmtree(file, ignore_errors=True)
            continue
        with suppress(IsADirectoryError, FileNotFoundError):
            file.unlink()


def _cannot_store(file: Path, error: OSError) -> BackendError:
    return BackendError(f"{not_written(file, error)}; store engines elsewhere with --engines DIR")


def _serves_the_same(old: EngineRecord, new: EngineRecord) -> bool:
    """Whether `new` replaces `old`: the same graph, library, GPUs and sizes."""
    names = ("graph", "backend", "version", "device", "compute_capabilities", "profile")
    return all(getattr(old, name) == getattr(new, name) for name in names)
