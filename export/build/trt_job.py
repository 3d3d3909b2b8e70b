"""The build of one engine as plain data, done in a process of its own: a crash of the library is an error there.

Knows neither bundles nor where engines are stored.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from latentrt.runtime.bundle import EngineRecord, Graph, sizes_text
from latentrt.runtime.errors import ExportError
from latentrt.runtime.gpu.device import Device

from .child_process import ChildDiedError, Progress, call_in_child
from .trt_builder import Serialized, Shapes, TrtBuilder
from .trt_options import BuildOptions
from .trt_timing import fastest, milliseconds_of


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """An engine to build.

    Attributes:
        record: what it will be, with its graph, library and sizes.
        device: the GPU that builds it; None without one.
        spec: the inputs and outputs of the graph.
        onnx: the file of the graph.
        options: as `TrtBuilder.check` returned them.
        shapes, refittable_weights, strict_nans, fused_attention, timing_cache: as for `TrtBuilder.engine_from_onnx`.
    """

    record: EngineRecord
    device: Device | None
    spec: Graph
    onnx: Path
    options: BuildOptions
    shapes: Shapes
    refittable_weights: Sequence[str] = ()
    strict_nans: bool = False
    fused_attention: bool = False
    timing_cache: Path | None = None


class Finished(NamedTuple):
    """An engine, or the fastest of several; `attempts` are the milliseconds of a run of each of these."""

    built: Serialized
    attempts: tuple[float, ...] = ()


def build_in_child(job: Job, progress: Progress) -> Finished:
    """As `build_here`, in a process of its own. Raises `ExportError` if that ends, too."""
    try:
        return call_in_child(build_here, job, progress)
    except ChildDiedError as death:
        raise ExportError(_told(job.record, death)) from None


def build_here(job: Job, progress: Progress) -> Finished:
    """Build an engine in this process, which a crash of the library ends. Raises as `TrtBuilder.engine_from_onnx`.

    Args:
        progress: called with the library's current phase and the completed fraction, from any thread.
    """
    library = TrtBuilder(job.record.backend, () if job.device is None else (job.device,))
    build = partial(
        library.engine_from_onnx,
        job.onnx,
        job.shapes,
        job.options,
        refittable_weights=job.refittable_weights,
        strict_nans=job.strict_nans,
        fused_attention=job.fused_attention,
        timing_cache=job.timing_cache,
        progress=progress,
    )
    if job.options.best_of == 1 or job.device is None:
        return Finished(build())
    times = partial(milliseconds_of, library, job.device, job.record, job.spec, job.onnx)
    return Finished(*fastest(job.options.best_of, build, times))


def _told(record: EngineRecord, death: ChildDiedError) -> str:
    engine = f"{record.graph} {sizes_text(record)}"
    others = f"other graphs than {record.graph} can be built with --graph NAME"
    if death.killed:
        return (
            f"the build of {engine} was ended by {death.how}: most likely the memory ran out. Close other programs, or "
            f"build on a machine with more memory; {others}"
        )
    if death.crashed:
        return (
            f"{record.backend} {record.version} crashed while it built {engine}, with {death.how}. That is a fault of "
            f"the library: try another version of it, or run this bundle with --backend onnxruntime; {others}"
        )
    return f"the process that built {engine} ended with {death.how}: what it wrote above may say why"
