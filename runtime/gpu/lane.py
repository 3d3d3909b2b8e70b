"""Lanes: what one running call owns on a GPU: a stream, scratch memory, and a context with buffers for each engine.

A lane serves one call at a time. All contexts of a lane share its scratch memory, which is safe because a stream runs
in order. Lanes share only the engines' weights and, with ONNX Runtime, the stream.
"""

import logging
import math
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Protocol

from numpy.typing import NDArray

from latentrt.runtime.arrays import DTYPES
from latentrt.runtime.bundle import Graph, Sizes, TensorSpec, shape_at
from latentrt.runtime.errors import BackendError

from .device import CapturedGraph, DeviceMemory, Stream
from .staging import Staging

logger = logging.getLogger(__name__)

CONTEXTS_KEPT = 16  # least recently used ones are closed; each holds buffers and a captured graph


class DeviceEngine(Protocol):
    """A graph loaded on a GPU by some library, which runs on a given stream with given addresses.

    Attributes:
        scratch_size: bytes of scratch memory that the caller must provide.
        captures_itself: whether the library captures CUDA graphs itself; otherwise `Execution` does.
    """

    spec: Graph
    scratch_size: int
    captures_itself: bool

    def new_context(self) -> Any:
        """A context with TensorRT's `set_input_shape`, `set_tensor_address` and `set_device_memory`."""

    def execute(self, context: Any, stream: int) -> None:
        """Enqueue a context on a stream; raises `BackendError` with the library's error."""

    def last_errors(self) -> str:
        """The library's most recent errors."""

    def save_cache(self) -> None:
        """Save compiled kernels to disk."""


class Lane:
    """A stream and everything used on it. Pass `stream` to share one; otherwise the lane owns its stream."""

    def __init__(self, device_index: int, stream: Stream | None = None) -> None:
        self.stream = stream or Stream(device_index)
        self._owns_stream = stream is None
        self.staging = Staging()
        self._blocks: dict[str, DeviceMemory] = {}
        self._contexts: OrderedDict[tuple[DeviceEngine, object], Execution] = OrderedDict()

    def begin(self) -> None:
        """Prepare for the next call: wait for the last one and reset the staging memory."""
        self.stream.make_current()
        self.stream.synchronize()
        self.staging.reset()

    def block(self, name: str, size: int) -> DeviceMemory:
        """A named block of at least this size; growing loses its content."""
        block = self._blocks.get(name)
        if block is None or block.size < size:
            if block is not None:
                self.stream.synchronize()
                block.close()
            self._blocks[name] = block = DeviceMemory(size)
        return block

    def scratch(self, size: int) -> DeviceMemory:
        """Scratch memory for all contexts; growing it drops captured graphs, which contain the old address."""
        before = self._blocks.get("scratch")
        block = self.block("scratch", size)
        if block is not before:
            for context in self._contexts.values():
                context.forget_capture()
        return block

    def context(self, engine: DeviceEngine, sizes: Sizes, *, kept: bool) -> "Execution":
        """A context of an engine; `kept` caches one context for each size, otherwise one for all sizes."""
        key = (engine, tuple(sorted(sizes.items())) if kept else None)
        if key not in self._contexts:
            while len(self._contexts) >= CONTEXTS_KEPT:
                self.stream.synchronize()
                self._contexts.popitem(last=False)[1].close()
            self._contexts[key] = Execution(engine, self)
        self._contexts.move_to_end(key)
        return self._contexts[key]

    def forget(self, engine: DeviceEngine) -> None:
        """Close all contexts of an engine."""
        self.stream.make_current()
        self.stream.synchronize()
        for key in [key for key in self._contexts if key[0] is engine]:
            self._contexts.pop(key).close()

    def upload(self, address: int, array: NDArray[Any]) -> None:
        """Copy an array to the GPU through pinned memory, asynchronously."""
        self.stream.upload(address, self.staging.fill(array))

    def download(self, address: int, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
        """Copy an array to the host; waits for the stream."""
        pinned = self.staging.take(math.prod(shape) * DTYPES[dtype].bytes)
        self.stream.download(pinned, address)
        self.stream.synchronize()
        array = pinned.view(dtype).reshape(shape).copy()
        self.staging.reset()  # all copies are done
        return array

    def close(self) -> None:
        """Wait for the stream, then free everything."""
        self.stream.make_current()
        self.stream.synchronize()
        for context in self._contexts.values():
            context.close()
        for block in self._blocks.values():
            block.close()
        self._contexts.clear()
        self._blocks.clear()
        self.staging.close()
        if self._owns_stream:
            self.stream.close()


class Execution:
    """An engine's execution context on a lane: its shapes, its buffers, and its captured graph."""

    def __init__(self, engine: DeviceEngine, lane: Lane) -> None:
        self.engine, self._lane = engine, lane
        self._context = engine.new_context()
        self._owned: dict[str, DeviceMemory] = {}
        self._scratch = 0
        self._sizes: Sizes = {}
        self._captured: CapturedGraph | None = None
        self._capturable: bool | None = None
        self.addresses: dict[str, int] = {}

    def resize(self, sizes: Sizes, elsewhere: Mapping[str, int] | None = None) -> None:
        """Set the sizes and allocate zeroed buffers; `elsewhere` has addresses of tensors that others own."""
        spec, elsewhere = self.engine.spec, elsewhere or {}
        if sizes != self._sizes:
            self.forget_capture()
            for tensor in spec.inputs:
                self._require(self._context.set_input_shape(tensor.name, shape_at(tensor, sizes)), tensor.name)
            self._sizes = dict(sizes)
        for tensor in (*spec.inputs, *spec.outputs):
            address = elsewhere.get(tensor.name) or self._buffer(tensor).address
            if self.addresses.get(tensor.name) != address:
                self.forget_capture()
                self._require(self._context.set_tensor_address(tensor.name, address), tensor.name)
                self.addresses[tensor.name] = address

    def size_of(self, tensor: TensorSpec) -> int:
        """Bytes of a tensor at the current sizes."""
        return math.prod(shape_at(tensor, self._sizes)) * DTYPES[tensor.dtype].bytes

    def write(self, name: str, array: NDArray[Any]) -> None:
        """Upload an input, or its first rows, asynchronously."""
        self._lane.upload(self.addresses[name], array)

    def read(self, tensor: TensorSpec) -> NDArray[Any]:
        """Copy an output to the host; waits for the stream."""
        if tensor.dtype == "bfloat16":
            raise BackendError(f"{tensor.name} is bfloat16, which numpy does not support: it stays on the GPU")
        return self._lane.download(self.addresses[tensor.name], shape_at(tensor, self._sizes), tensor.dtype)

    def enqueue(self) -> None:
        """Enqueue the engine on the stream."""
        scratch = self._lane.scratch(self.engine.scratch_size)
        if scratch.address != self._scratch:
            self._context.set_device_memory(scratch.address, scratch.size)
            self._scratch = scratch.address
        self.engine.execute(self._context, self._lane.stream.handle)

    def enqueue_and_copy(self, source: str, target: str) -> None:
        """Enqueue the engine and then a copy of an output to an input, as one captured graph if possible.

        If the library captures its work itself, the copy is a second launch.
        """
        size = self.size_of(next(t for t in self.engine.spec.outputs if t.name == source))

        def work() -> None:
            self.enqueue()
            self._lane.stream.copy(self.addresses[target], self.addresses[source], size)

        if self._captured is None and self._capturable is not False and not self.engine.captures_itself:
            self._capture(work)
        if self._captured is None:
            work()
        else:
            self._lane.stream.launch(self._captured)

    def _capture(self, work: Any) -> None:
        # Run once without capture: only then are shapes known, kernels compiled and memory allocated.
        self.enqueue()
        can = getattr(self._context, "is_stream_capturable", None)  # TensorRT always can, and lacks this method
        self._capturable = can is None or bool(can(self._lane.stream.handle))
        if self._capturable:
            self._captured = self._lane.stream.capture(work)
        else:
            logger.warning("%s cannot be captured as a CUDA graph, so each call takes more host time", self)
        self.engine.save_cache()

    def forget_capture(self) -> None:
        """Drop the captured graph; the next call captures again."""
        if self._captured is not None:
            self._lane.stream.synchronize()
            self._captured.close()
        self._captured, self._capturable = None, None

    def _buffer(self, tensor: TensorSpec) -> DeviceMemory:
        size = self.size_of(tensor)
        memory = self._owned.get(tensor.name)
        if memory is None or memory.size < size:
            if memory is not None:
                self._lane.stream.synchronize()
                memory.close()
            self._owned[tensor.name] = memory = DeviceMemory(size)
            self._lane.stream.zero(memory)
        return memory

    def _require(self, accepted: bool, tensor: str) -> None:
        if not accepted:
            raise BackendError(f"{self.engine} rejected {tensor!r}: {self.engine.last_errors()}")

    def close(self) -> None:
        """Free the memory; the stream must be idle."""
        self.forget_capture()
        self._context = None
        for memory in self._owned.values():
            memory.close()
        self._owned.clear()

    def __str__(self) -> str:
        return str(self.engine)
