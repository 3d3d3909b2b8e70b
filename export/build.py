"""Build the engines of a bundle: which graph at which sizes, what is there already, and one safe update of the list."""

import fcntl
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from latentrt.runtime.bundle import Bundle, EngineRecord, File
from latentrt.runtime.device import visible_devices
from latentrt.runtime.engine_choice import sizes_text
from latentrt.runtime.engine_files import EngineFiles, cache_folder, updated_manifest
from latentrt.runtime.errors import BackendError, ExportError, InputError, nearest_names
from latentrt.runtime.strict_json import encode

from .profiles import Bucket, profiles_of_graph, shapes_of_tensor
from .trt_build import BuildOptions, TrtBuilder

FOLDER = "engines"
# Progress of a build: the engine, the library's current phase, the share that is done.
Progress = Callable[["Task", str, float], object]


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """An engine that is wanted: what its record will say, and the sizes of its inputs."""

    record: EngineRecord
    profile: Bucket

    def __str__(self) -> str:
        return f"{self.record.graph} {sizes_text(self.record)}"


@dataclass(frozen=True, slots=True, eq=False)
class Built:
    """An engine that is now there. `seconds` is None where it was there before."""

    record: EngineRecord
    size: int
    seconds: float | None


def build_engines(
    bundle_path: Path | str,
    backend: str,
    buckets: Callable[[Bundle], Sequence[Bucket]],
    options: BuildOptions | None = None,
    *,
    engines: Path | None = None,
    graphs: Sequence[str] = (),
    progress: Progress = lambda _task, _phase, _share: None,
) -> Iterator[Built]:
    """Build what is missing for these sizes, one engine at a time; each is in the list before it is yielded.

    Args:
        buckets: sizes for a bundle, such as `buckets_from_options` gives.
        engines: folder to put engines into, instead of the bundle's own.
        graphs: names of graphs; empty is all.

    Raises `BackendError`, `InputError`: not possible here. `ExportError`: the library cannot build a graph. An
    interrupt or an error leaves all engines that were there before, and those already yielded.
    """
    bundle = Bundle.open(bundle_path)
    library = TrtBuilder(backend, visible_devices())
    options = library.check(options or BuildOptions())
    require_unaltered(bundle, graphs)
    for task in _tasks(bundle, library, options, buckets(bundle), graphs):
        same = built_before(bundle.path, engines, task.record)
        if same is not None:
            yield same
            continue
        began = time.perf_counter()
        plan = _build(bundle, library, options, task, progress)
        add_engine(bundle.path, engines, task.record, plan)
        yield Built(task.record, len(plan), time.perf_counter() - began)


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


def _tasks(
    bundle: Bundle, library: TrtBuilder, options: BuildOptions, buckets: Sequence[Bucket], graphs: Sequence[str]
) -> Iterator[Task]:
    manifest = bundle.manifest
    for name in graphs or manifest.graphs:
        graph = manifest.graphs[name]
        weights = manifest.files.get(f"{graph.file}.data")
        for profile in profiles_of_graph(name, graph, buckets):
            record = EngineRecord(
                graph=name,
                file="",
                backend=library.backend,
                version=library.version,
                device=_only_device(library, options),
                compute_capabilities=library.runs_on(options),
                precision=manifest.recipe.precision,
                tf32=options.tf32,
                profile={symbol: tuple(span) for symbol, span in profile.items()},
                options={
                    "optimization_level": str(options.optimization_level),
                    "refittable": str(options.refittable).lower(),
                    "strip_weights": str(options.strip_weights).lower(),
                    "version_compatible": str(options.version_compatible).lower(),
                    "hardware_compatible": options.hardware_compatible,
                    "workspace_mib": str(options.workspace_mib or "all"),
                },
                host_code=options.version_compatible,
                onnx_sha256=manifest.files[graph.file].sha256,
                weights_sha256=weights.sha256 if weights else None,
            )
            yield Task(with_file(record, "plan"), profile)


def with_file(record: EngineRecord, kind: str) -> EngineRecord:
    """The record with the name of its file, which only keeps files apart; what an engine is stands in the record."""
    key = hashlib.sha256(json.dumps(encode(record), sort_keys=True).encode()).hexdigest()[:12]
    return replace(record, file=f"{FOLDER}/{record.graph}-{key}.{kind}")


def _only_device(library: TrtBuilder, options: BuildOptions) -> str | None:
    """TensorRT's kernels are timed on one model of GPU; TensorRT for RTX and compatible engines know no model."""
    tied = library.backend == "tensorrt" and options.hardware_compatible == "none"
    return library.device.name if tied and library.device else None


def _build(bundle: Bundle, library: TrtBuilder, options: BuildOptions, task: Task, progress: Progress) -> bytes:
    name = task.record.graph
    graph = bundle.graph(name)
    uses = [u for parameter, all_uses in bundle.manifest.weights.items() if _lora_target(parameter) for u in all_uses]
    return library.engine_from_onnx(
        bundle.file(graph.file),
        {spec.name: shapes_of_tensor(spec, task.profile) for spec in graph.inputs},
        options,
        refittable_weights=[use.initializer for use in uses if use.graph == name],
        strict_nans=any(spec.name == "nonfinite" for spec in graph.outputs),  # it is there to count them
        timing_cache=_timing_cache(library),
        progress=lambda phase, share: progress(task, phase, share),
    )


def _lora_target(parameter: str) -> bool:
    """Whether LoRA files change such a parameter: weights of linear and convolution layers."""
    module = parameter.removesuffix(".weight")
    return module != parameter and "norm" not in module.rpartition(".")[2] and ".embeddings." not in module


def _timing_cache(library: TrtBuilder) -> Path | None:
    if library.device is None:
        return None
    name = re.sub(r"[^\w.]+", "_", f"{library.backend} {library.version} {library.device.name}")
    return cache_folder() / "timing" / f"{name}.cache"


def built_before(bundle_path: Path, engines: Path | None, record: EngineRecord) -> Built | None:
    """The same engine where it is there already, and whole."""
    present = EngineFiles.of_bundle(Bundle.open(bundle_path), engines)
    same = next((r for r in present.engines if r.file == record.file and present.intact(r)), None)
    return None if same is None else Built(same, present.files[same.file].size, None)


def add_engine(bundle_path: Path, engines: Path | None, record: EngineRecord, plan: bytes) -> None:
    """Put an engine and its record in place: the file first, the list that names it last."""
    folder = bundle_path if engines is None else engines
    try:
        (folder / FOLDER).mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            bundle = Bundle.open(bundle_path)
            present = EngineFiles.of_bundle(bundle, engines)
            file = folder / record.file
            partial = file.with_suffix(".partial")
            partial.write_bytes(plan)
            partial.replace(file)
            replaced = [r for r in present.engines if _serves_the_same(r, record)]
            kept = tuple(r for r in present.engines if r not in replaced)
            files = {n: f for n, f in present.files.items() if n not in {r.file for r in replaced}}
            files[record.file] = File(len(plan), hashlib.sha256(plan).hexdigest())
            target, text = updated_manifest(bundle, engines, EngineFiles(folder, (*kept, record), files))
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
