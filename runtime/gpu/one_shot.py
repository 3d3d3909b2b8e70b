"""Runs graphs once, on host arrays: text encoders, the VAE, features of timesteps."""

import math
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentrt.runtime.arrays import DTYPES, Layers
from latentrt.runtime.bundle import Graph, shape_at, sizes_of_inputs
from latentrt.runtime.errors import BackendError, InputError

from .buffers import Buffers
from .device import DeviceMemory, Stream
from .engine import BoundEngine, DeviceEngine, Fitted, GpuBackend
from .staging import Staging

KEPT = 8  # bound engines, each with buffers; the least recently used ones are closed


class OneShot:
    """A stream for graphs that run once, one at a time. Thread-safe."""

    def __init__(self, stream: Stream) -> None:
        """The stream may be shared, if all of its work comes from one thread."""
        self._stream, self._staging = stream, Staging(stream)
        self._bound: OrderedDict[tuple[DeviceEngine, object], tuple[BoundEngine, Buffers]] = OrderedDict()
        self._scratch: DeviceMemory | None = None
        self._lock = threading.RLock()

    def run(self, fitted: Fitted, inputs: Mapping[str, NDArray[Any]], layers: Layers) -> dict[str, NDArray[Any]]:
        """Run an engine on at most as many rows as it takes; what it returns for added rows is dropped."""
        with self._lock:
            try:
                return self._run(fitted, inputs, layers)
            except BaseException:
                self._clear()  # so that nothing refers to memory that could not be allocated
                raise

    def _run(self, fitted: Fitted, inputs: Mapping[str, NDArray[Any]], layers: Layers) -> dict[str, NDArray[Any]]:
        bound, buffers = self._bind(fitted)
        rows = len(next(iter(inputs.values())))
        for name, array in inputs.items():
            self._staging.upload(buffers.addresses[name], array)
        bound(self._stream.handle)
        copies = {}
        for spec in fitted.engine.spec.outputs:
            address, dtype = buffers.addresses[spec.name], DTYPES[spec.dtype]
            shape = (rows, *shape_at(spec, fitted.sizes)[1:])
            if spec.name != "hidden_states" or layers is None:
                copies[spec.name] = [self._staging.download(address, shape, dtype.numpy)]
            else:  # one copy for each row and layer: all of them are tens of megabytes for large text encoders
                if max(layers) >= shape[1]:
                    raise InputError(f"layer {max(layers)} of hidden_states: expected less than {shape[1]}")
                size = math.prod(shape[2:]) * dtype.bytes
                places = [address + (row * shape[1] + layer) * size for row in range(rows) for layer in layers]
                copies[spec.name] = [self._staging.download(at, (1, *shape[2:]), dtype.numpy) for at in places]
        outputs = {name: np.concatenate([copy.result() for copy in parts]) for name, parts in copies.items()}
        if layers is not None:
            states = outputs["hidden_states"]
            outputs["hidden_states"] = states.reshape(rows, len(layers), *states.shape[1:])
        return outputs

    def _bind(self, fitted: Fitted) -> tuple[BoundEngine, Buffers]:
        engine, sizes = fitted.engine, fitted.sizes
        key = (engine, tuple(sorted(sizes.items())))
        if key not in self._bound:
            if self._scratch is None or self._scratch.size < engine.scratch_size:
                self._clear()
                self._scratch = DeviceMemory(engine.scratch_size)
            while len(self._bound) >= KEPT:
                self._stream.synchronize()
                self._close(*self._bound.popitem(last=False)[1])
            buffers = Buffers(self._stream, (*engine.spec.inputs, *engine.spec.outputs), sizes)
            try:
                self._bound[key] = engine.bind(sizes, buffers.addresses, self._scratch), buffers
            except BaseException:
                buffers.close()
                raise
        self._bound.move_to_end(key)
        return self._bound[key]

    @contextmanager
    def at_rest(self) -> Iterator[None]:
        """Nothing runs inside of the block, but what its thread starts."""
        with self._lock:
            self._stream.synchronize()
            yield

    def clear(self) -> None:
        """Free all memory."""
        with self._lock:
            self._clear()

    def _clear(self) -> None:
        with ExitStack() as freed, suppress(BackendError):  # after an error of CUDA, what can be freed is freed
            freed.callback(self._staging.close)
            if self._scratch is not None:
                freed.callback(self._scratch.close)
            for bound, buffers in self._bound.values():
                freed.callback(self._close, bound, buffers)
            self._bound.clear()
            self._scratch = None
            self._stream.synchronize()

    @staticmethod
    def _close(bound: BoundEngine, buffers: Buffers) -> None:
        bound.close()
        buffers.close()


class GpuEngine:
    """Runs a graph on host arrays, split over several runs if its engine takes fewer rows."""

    def __init__(self, backend: GpuBackend, spec: Graph, graph: str) -> None:
        self.spec = spec
        self._backend, self._graph = backend, graph

    def run(self, inputs: Mapping[str, NDArray[Any]], layers: Layers = None) -> dict[str, NDArray[Any]]:
        """See `Engine.run`."""
        return self._backend.run(self._graph, inputs, layers)


def run_in_pieces(
    backend: GpuBackend,
    one_shot: OneShot,
    graph: str,
    spec: Graph,
    inputs: Mapping[str, NDArray[Any]],
    layers: Layers,
) -> dict[str, NDArray[Any]]:
    """Run a graph on all rows of the inputs."""
    sizes = sizes_of_inputs(spec, {name: array.shape for name, array in inputs.items()})
    fitted = backend.fitted(graph, sizes, split=True)
    step = fitted.sizes[str(spec.inputs[0].shape[0])]
    pieces = []
    for at in range(0, len(next(iter(inputs.values()))), step):
        rows = {s.name: np.asarray(inputs[s.name][at : at + step], DTYPES[s.dtype].numpy) for s in spec.inputs}
        pieces.append(one_shot.run(fitted, rows, layers))
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
