"""Build the engines of a bundle: which graph at which sizes, what is there already, and one safe update of the list."""

import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from latentrt.runtime.bundle import Bundle, EngineRecord, sizes_text
from latentrt.runtime.files import cache_folder
from latentrt.runtime.gpu.device import visible_devices

from .profiles import SizeRanges, profiles_of_graph, shapes_of_tensor
from .store import Built, add_engine, built_before, require_unaltered, with_file
from .trt_builder import BuildOptions, TrtBuilder

# Progress of a build: the engine, the library's current phase, the share that is done.
Progress = Callable[["Task", str, float], object]


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """An engine that is wanted: what its record will say, and the sizes of its inputs."""

    record: EngineRecord
    profile: SizeRanges

    def __str__(self) -> str:
        return f"{self.record.graph} {sizes_text(self.record)}"


def build_engines(
    bundle_path: Path | str,
    backend: str,
    buckets: Callable[[Bundle], Sequence[SizeRanges]],
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


def _tasks(
    bundle: Bundle, library: TrtBuilder, options: BuildOptions, buckets: Sequence[SizeRanges], graphs: Sequence[str]
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
