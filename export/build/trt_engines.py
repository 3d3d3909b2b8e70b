"""Build a bundle's TensorRT engines: which graphs at which sizes, and which of them already exist."""

import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from latentrt.runtime.backends.engine_fit import uses_tf32
from latentrt.runtime.bundle import AnyBundle, EngineRecord, open_bundle, sizes_text
from latentrt.runtime.files import cache_folder
from latentrt.runtime.gpu.device import visible_devices

from .layers import layers_from_text, layers_json
from .profiles import SizeRanges, profiles_of_graph, shapes_of_tensor
from .quantized import check_targets, options_for, quantization_of
from .store import (
    Built,
    add_engine,
    built_before,
    clear_killed,
    require_storable,
    require_unaltered,
    with_file,
    with_layers,
)
from .trt_builder import TrtBuilder
from .trt_job import Job, build_in_child
from .trt_options import BuildOptions, recorded

# Called with the engine, the library's current phase, and the completed fraction of the build.
Progress = Callable[["Task", str, float], object]


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """An engine to build: its record, and the sizes of its inputs."""

    record: EngineRecord
    profile: SizeRanges

    def __str__(self) -> str:
        return f"{self.record.graph} {sizes_text(self.record)}"


def build_engines(
    bundle_path: Path | str,
    backend: str,
    buckets: Callable[[AnyBundle], Sequence[SizeRanges]],
    options: BuildOptions | None = None,
    *,
    engines: Path | None = None,
    graphs: Sequence[str] = (),
    progress: Progress = lambda _task, _phase, _share: None,
) -> Iterator[Built]:
    """Build the missing engines for these sizes, each in a process of its own; it is in the list before it is yielded.

    Args:
        backend: "tensorrt" or "tensorrt_rtx".
        buckets: function from the bundle to its sizes, such as one that calls `buckets_from_options`.
        engines: folder for engines; None is the bundle's own.
        graphs: names of graphs; empty is all.
        progress: called during each build.

    Raises `BackendError` or `InputError` if the library, the GPU or the options do not allow the build, and
    `ExportError` if the library fails to build a graph, or crashes. After an error or an interrupt, previous engines
    and those already yielded remain.
    """
    clear_killed(Path(bundle_path), engines)
    bundle = open_bundle(bundle_path)
    library = TrtBuilder(backend, visible_devices())
    options = library.check(options_for(bundle, graphs, options or BuildOptions(), library))
    check_targets(bundle, graphs, options, library)
    require_unaltered(bundle, graphs)
    for task in _tasks(bundle, library, options, buckets(bundle), graphs):
        same = built_before(bundle.path, engines, task.record)
        if same is not None:
            yield same
            continue
        require_storable(bundle.path, engines)
        began = time.perf_counter()
        built, attempts = build_in_child(_job(bundle, library, options, task), partial(progress, task))
        layers = layers_from_text(built.layers)
        record = with_layers(task.record) if layers else task.record
        add_engine(bundle.path, engines, record, built.engine, layers_json(layers))
        yield Built(record, len(built.engine), time.perf_counter() - began, attempts)


def _tasks(
    bundle: AnyBundle, library: TrtBuilder, options: BuildOptions, buckets: Sequence[SizeRanges], graphs: Sequence[str]
) -> Iterator[Task]:
    manifest = bundle.manifest
    for name in graphs or manifest.graphs:
        graph = manifest.graphs[name]
        tf32 = uses_tf32(manifest, name) if options.tf32 is None else options.tf32
        weights = manifest.files.get(f"{graph.file}.data")
        quantized = quantization_of(manifest, name)
        more = {} if quantized is None else {"quantization": quantized.to}
        for profile in profiles_of_graph(name, graph, buckets):
            record = EngineRecord(
                graph=name,
                file="",
                backend=library.backend,
                version=library.version,
                device=_only_device(library, options),
                compute_capabilities=library.runs_on(options),
                precision=manifest.recipe.precision,
                tf32=tf32,
                profile={symbol: tuple(span) for symbol, span in profile.items()},
                options=recorded(options) | more,
                host_code=options.version_compatible,
                onnx_sha256=manifest.files[graph.file].sha256,
                weights_sha256=weights.sha256 if weights else None,
            )
            yield Task(with_file(record, "plan"), profile)


def _only_device(library: TrtBuilder, options: BuildOptions) -> str | None:
    """The GPU model that an engine is tied to: TensorRT's, unless it is hardware compatible; else None."""
    tied = library.backend == "tensorrt" and options.hardware_compatible == "none"
    return library.device.name if tied and library.device else None


def _job(bundle: AnyBundle, library: TrtBuilder, options: BuildOptions, task: Task) -> Job:
    name = task.record.graph
    graph = bundle.graph(name)
    uses = [u for parameter, all_uses in bundle.manifest.weights.items() if _lora_target(parameter) for u in all_uses]
    return Job(
        record=task.record,
        device=library.device,
        spec=graph,
        onnx=bundle.file(graph.file),
        options=replace(options, tf32=task.record.tf32),
        shapes={spec.name: shapes_of_tensor(spec, task.profile) for spec in graph.inputs},
        refittable_weights=[use.initializer for use in uses if use.graph == name],
        # In fp32 there is no fused kernel. Where a UNet of 16 bits casts to float32 around attention, libraries from
        # TensorRT 11.3 on fuse the casts too.
        fused_attention=bundle.manifest.recipe.precision != "fp32" and name == "denoise",
        strict_nans=any(spec.name == "nonfinite" for spec in graph.outputs),  # the output counts them
        # With the timings of the first build, the others would be the same.
        timing_cache=_timing_cache(library) if options.best_of == 1 else None,
    )


def _lora_target(parameter: str) -> bool:
    """Whether LoRA can change a parameter: weights of linear and convolution layers."""
    module = parameter.removesuffix(".weight")
    return module != parameter and "norm" not in module.rpartition(".")[2] and ".embeddings." not in module


def _timing_cache(library: TrtBuilder) -> Path | None:
    if library.device is None:
        return None
    name = re.sub(r"[^\w.]+", "_", f"{library.backend} {library.version} {library.device.name}")
    return cache_folder() / "timing" / f"{name}.cache"
