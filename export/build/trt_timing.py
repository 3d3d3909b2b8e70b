"""Time engines on the GPU, to keep the fastest of several builds."""

import statistics
from collections.abc import Callable
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

from latentrt.runtime.backends.trt.library import TrtLibrary
from latentrt.runtime.backends.trt.loaded_engine import LoadedEngine
from latentrt.runtime.bundle import EngineRecord, Graph
from latentrt.runtime.gpu.buffers import Buffers
from latentrt.runtime.gpu.device import Device, DeviceMemory, Stream, TimedEvent, on_device

from .trt_builder import Serialized

WARM_UP, REPLAYS = 5, 21


def fastest(
    count: int, build: Callable[[], Serialized], milliseconds: Callable[[bytes], float]
) -> tuple[Serialized, tuple[float, ...]]:
    """The fastest of `count` builds, and the milliseconds of each, in their order. Holds two engines at a time."""
    best, times = build(), []
    times.append(milliseconds(best.engine))
    for _ in range(count - 1):
        other = build()
        times.append(milliseconds(other.engine))
        if times[-1] < min(times[:-1]):
            best = other
    return best, tuple(times)


def milliseconds_of(
    library: TrtLibrary, device: Device, record: EngineRecord, spec: Graph, onnx: Path, serialized: bytes
) -> float:
    """The median time of a run at the sizes that the engine is optimized for, with zeros as inputs.

    Args:
        onnx: the file that it was built from, which holds the weights of a stripped engine.

    Raises `BackendError`.
    """
    sizes = {symbol: span[1] for symbol, span in record.profile.items()}
    with on_device(device.index), ExitStack() as freed:
        engine = LoadedEngine(library, record, spec, serialized, device.name)
        freed.callback(engine.close)
        if record.options["strip_weights"] == "true":
            engine.refit_from(onnx)
        stream = Stream()
        freed.callback(stream.close)
        scratch = DeviceMemory(engine.scratch_size)
        freed.callback(scratch.close)
        buffers = Buffers(stream, (*spec.inputs, *spec.outputs), sizes)
        freed.callback(buffers.close)
        bound = engine.bind(sizes, buffers.addresses, scratch)
        freed.callback(bound.close)
        freed.callback(stream.synchronize)
        for _ in range(WARM_UP):
            bound(stream.handle)
        return _median(freed, stream, lambda: bound(stream.handle))


def _median(freed: ExitStack, stream: Stream, run: Callable[[], object]) -> float:
    """The median time of a captured run, so that the host's part does not count."""
    graph = stream.capture(run)
    freed.callback(graph.close)
    marks = []
    for _ in range(REPLAYS + 1):
        marks.append(TimedEvent())
        freed.callback(marks[-1].close)
    marks[0].record(stream)
    for mark in marks[1:]:
        stream.launch(graph)
        mark.record(stream)
    stream.synchronize()
    return statistics.median(b.milliseconds_since(a) for a, b in pairwise(marks))
