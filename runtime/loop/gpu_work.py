"""What all work of some slots shares on a GPU: a stream, uploads, scratch memory, the engines bound to it, rows."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import Any, Protocol, TypeVar

from numpy.typing import NDArray

from latentrt.runtime.arrays import Float32
from latentrt.runtime.bundle import Sizes, TensorSpec
from latentrt.runtime.errors import BackendError
from latentrt.runtime.gpu.buffers import Buffers
from latentrt.runtime.gpu.device import DeviceMemory, Stream
from latentrt.runtime.gpu.engine import BoundEngine, DeviceEngine, GpuBackend
from latentrt.runtime.gpu.launch import Launch
from latentrt.runtime.gpu.staging import Staging


class Closable(Protocol):
    """Something to free."""

    def close(self) -> None: ...


T = TypeVar("T", bound=Closable)
# An engine, the sizes to run it at, and the addresses of its tensors.
Part = tuple[DeviceEngine, Sizes, Mapping[str, int]]


class GpuWork:
    """Owns the stream, unless it is shared; closes what was opened through it."""

    def __init__(self, shared: Stream | None) -> None:
        self.stream = shared or Stream()
        self.staging = Staging(self.stream)
        self._contexts: dict[tuple[int, str], tuple[BoundEngine, Buffers]] = {}
        self._launches: dict[object, Launch] = {}
        self._scratch: DeviceMemory | None = None
        # What is freed at the end, and what is freed when scratch memory moves.
        self._opened, self._bound = ExitStack(), ExitStack()
        if shared is None:
            self._opened.callback(self.stream.close)
        self._opened.callback(self.staging.close)

    def open(self, resource: T) -> T:
        """Have a resource closed at the end."""
        self._opened.callback(resource.close)
        return resource

    def write(self, address: int, array: NDArray[Any]) -> None:
        """Copy an array to the GPU, asynchronously."""
        self.staging.upload(address, array)

    def launches(self, key: object) -> bool:
        """Whether a launch of this key is known."""
        return key in self._launches

    def launch(self, key: object, parts: Sequence[Part]) -> None:
        """Enqueue engines one after the other; those of a key are bound once, and captured.

        Args:
            parts: read only when the key is new.
        """
        if key not in self._launches:
            # For all of them first: growing it later would drop what is bound already.
            self.reserve_scratch(max(engine.scratch_size for engine, _, _ in parts))
            launch = Launch([self._bind(*part) for part in parts], self.stream)
            self._bound.callback(launch.close)
            self._launches[key] = launch
        self._launches[key]()

    def fill_context(
        self, backend: GpuBackend, graph: str, hidden_states: Float32, to: "SlotBuffers", slot: int
    ) -> None:
        """Run `context` or `control_context`, and copy what it gives: rows of slots are not always aligned."""
        given = self._context(backend, graph, hidden_states).addresses
        for name in set(given) - {"hidden_states"}:
            self.stream.copy(to.address(name, slot), given[name], to.row_bytes(name))

    def _context(self, backend: GpuBackend, graph: str, hidden_states: Float32) -> Buffers:
        key = (id(backend), graph)
        if key not in self._contexts:
            fitted = backend.fitted(graph, {"n": len(hidden_states), "S": hidden_states.shape[1]})
            self.reserve_scratch(fitted.engine.scratch_size)
            tensors = (*fitted.engine.spec.inputs, *fitted.engine.spec.outputs)
            buffers = Buffers(self.stream, tensors, fitted.sizes)
            self._bound.callback(buffers.close)
            self._contexts[key] = self._bind(fitted.engine, fitted.sizes, buffers.addresses), buffers
        bound, buffers = self._contexts[key]
        self.write(buffers.addresses["hidden_states"], hidden_states)
        bound(self.stream.handle)
        return buffers

    def _bind(self, engine: DeviceEngine, sizes: Sizes, addresses: Mapping[str, int]) -> BoundEngine:
        """Bind an engine to the scratch memory that all engines of the stream share."""
        self.reserve_scratch(engine.scratch_size)
        assert self._scratch is not None
        own = {spec.name for spec in (*engine.spec.inputs, *engine.spec.outputs)}
        bound = engine.bind(sizes, {name: addresses[name] for name in own}, self._scratch)
        self._bound.callback(bound.close)
        return bound

    def reserve_scratch(self, size: int) -> None:
        """Growing it drops everything that is bound to its address."""
        if self._scratch is None or self._scratch.size < size:
            self.forget_bound()
            self._scratch = DeviceMemory(size)
            self._bound.callback(self._scratch.close)

    def forget_bound(self) -> None:
        """Drop bound engines and scratch memory, once the stream is idle."""
        bound, self._bound = self._bound, ExitStack()
        self._launches.clear()
        self._contexts.clear()
        self._scratch = None
        with bound, suppress(BackendError):  # after an error of CUDA, what can be freed is freed
            self.stream.synchronize()

    def close(self) -> None:
        """Free all memory."""
        with self._opened:
            self.forget_bound()


class SlotBuffers:
    """Tensors in device memory that have rows for each slot.

    Attributes:
        addresses: of whole tensors, by name.
    """

    def __init__(self, work: GpuWork, tensors: Iterable[TensorSpec], sizes: Sizes) -> None:
        """`sizes` are those of all slots together."""
        self._stream, self._capacity = work.stream, sizes["B"]
        self._buffers = work.open(Buffers(work.stream, tensors, sizes))
        self.addresses: Mapping[str, int] = self._buffers.addresses

    def row_bytes(self, name: str) -> int:
        """Bytes of the rows of one slot."""
        return self._buffers.sizes[name] // self._capacity

    def address(self, name: str, slot: int) -> int:
        """Where the rows of a slot begin."""
        return self.addresses[name] + slot * self.row_bytes(name)

    def move(self, source: int, target: int, *, names: Iterable[str] | None = None) -> None:
        """Copy the rows of a slot; None is those of all tensors."""
        for name in self.addresses if names is None else names:
            self._stream.copy(self.address(name, target), self.address(name, source), self.row_bytes(name))
