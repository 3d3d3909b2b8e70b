"""Slots in device memory.

A UNet call costs three driver calls that queue work, whatever the batch: an upload of its rows, a launch, an event. The
host then waits for the event of the call before, so that one call is queued while another runs. Two state buffers
alternate. Knows buffers and addresses; knows nothing about the library, which is behind `GpuBackend`.
"""

from contextlib import ExitStack, suppress
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from latentrt.runtime.arrays import Float32
from latentrt.runtime.bundle import Graph, Sizes, shape_at
from latentrt.runtime.errors import BackendError
from latentrt.runtime.gpu.buffers import Buffers
from latentrt.runtime.gpu.device import DeviceMemory, Event, Stream
from latentrt.runtime.gpu.engine import BoundEngine, DeviceEngine, GpuBackend
from latentrt.runtime.gpu.launch import Launch
from latentrt.runtime.gpu.staging import Download, Staging
from latentrt.runtime.protocols import Bucket, Trajectory

from .call_block import CallBlock
from .tables import CALL_INPUTS, CallRows, TimeFeatures, known_parts


class _Closable(Protocol):
    def close(self) -> None: ...


T = TypeVar("T", bound=_Closable)


class GpuSlots:
    """See `Slots`."""

    def __init__(
        self,
        backend: GpuBackend,
        denoise: Graph,
        bucket: Bucket,
        count: int,
        *,
        features: TimeFeatures,
        shared: Stream | None = None,
    ) -> None:
        """All work of a shared stream must come from one thread; without it, the slots have a stream of their own.

        Raises `OutOfMemoryError`, and `BackendError` if an engine is missing or damaged; then nothing stays allocated.
        """
        self.bucket, self.counts = bucket, backend.batches(bucket.sizes(count))
        capacity = self.counts[-1]
        self._backend, self._features, self._spec = backend, features, denoise
        stream = self._stream = shared or Stream()
        self._sizes = bucket.sizes(capacity)
        self._rows, self._staging = CallRows(capacity), Staging(stream)
        self._calls = self._now = 0  # `_now` is which of the states is the current one
        self._launches: dict[tuple[int, int, bool], Launch] = {}
        self._context: tuple[BoundEngine, Buffers] | None = None
        self._scratch: DeviceMemory | None = None
        self._known: Buffers | None = None
        # What is freed at the end, and what is freed when scratch memory moves.
        self._opened, self._bound = ExitStack(), ExitStack()
        if shared is None:
            self._opened.callback(stream.close)
        self._opened.callback(self._staging.close)
        try:
            # Loaded now, so that missing or damaged engines are reported before the loop starts.
            self._reserve_scratch(self._denoise(capacity).scratch_size)
            self._events = self._open(Event()), self._open(Event())
            self._block = self._open(CallBlock(stream, denoise, self._sizes))
            resident = [spec for spec in denoise.inputs if spec.name not in (*CALL_INPUTS, "noise")]
            self._buffers = self._open(Buffers(stream, (*resident, *denoise.outputs), self._sizes))
        except BaseException:
            self.close()
            raise

    def _open(self, resource: T) -> T:
        """Have a resource closed at the end."""
        self._opened.callback(resource.close)
        return resource

    # --- filling ------------------------------------------------------------------------------------------------------

    def fill(self, slot: int, trajectory: Trajectory) -> None:
        """See `Slots.fill`."""
        self._rows.fill(slot, trajectory, self._features.of(trajectory))
        self._write(self._state(slot), trajectory.initial_state())
        self._write_keys_and_values(slot, trajectory.context)
        if trajectory.extra is not None:
            self._write(self._address(self._buffers, "extra", slot), trajectory.extra)
        if trajectory.mask is not None and self._known is None:
            self._known = self._new_known()
        if self._known is not None:
            for name, value in known_parts(trajectory).items():
                size = self._known.sizes[name] // self.counts[-1] // 4
                self._write(self._address(self._known, name, slot), np.broadcast_to(np.float32(value).ravel(), size))

    def _write(self, address: int, array: NDArray[Any]) -> None:
        self._staging.upload(address, array)

    def _write_keys_and_values(self, slot: int, context: Float32) -> None:
        """Run `context` into buffers of its own, as a row of the slots is not always aligned, and copy the rows."""
        if self._context is None:
            fitted = self._backend.fitted("context", {"n": len(context), "S": context.shape[1]})
            tensors = (*fitted.engine.spec.inputs, *fitted.engine.spec.outputs)
            self._reserve_scratch(fitted.engine.scratch_size)
            buffers = Buffers(self._stream, tensors, fitted.sizes)
            self._bound.callback(buffers.close)
            self._context = self._bind(fitted.engine, fitted.sizes, buffers.addresses), buffers
        bound, buffers = self._context
        self._write(buffers.addresses["hidden_states"], context)
        bound(self._stream.handle)
        for name in set(buffers.addresses) - {"hidden_states"}:
            size = self._buffers.sizes[name] // self.counts[-1]
            self._stream.copy(self._address(self._buffers, name, slot), buffers.addresses[name], size)

    def _new_known(self) -> Buffers:
        """Inputs of `blend`; slots without a mask keep their whole state."""
        graph = self._blend(self.counts[-1]).spec
        known = self._open(
            Buffers(self._stream, [s for s in graph.inputs if s.name in ("mask", "clean", "noise")], self._sizes)
        )
        self._write(known.addresses["mask"], np.ones(known.sizes["mask"] // 4, np.float32))
        return known

    def move(self, source: int, target: int) -> None:
        """See `Slots.move`."""
        self._rows.move(source, target)
        size = self._buffers.sizes["state"] // self.counts[-1]
        self._stream.copy(self._state(target), self._state(source), size)
        for buffers in filter(None, (self._buffers, self._known)):
            for name in set(buffers.addresses) - {"state", "next_state"}:
                size = buffers.sizes[name] // self.counts[-1]
                self._stream.copy(self._address(buffers, name, target), self._address(buffers, name, source), size)

    # --- calls --------------------------------------------------------------------------------------------------------

    def call(self, at: NDArray[np.int32]) -> None:
        """See `Slots.call`."""
        calls = at.tolist()
        count = next(count for count in self.counts if count >= len(calls))
        draws, masked = self._rows.draws(calls), self._rows.masked(calls)
        turn = self._calls % 2
        self._rows.write(calls, self._block.rows(turn, count, noise=draws))
        self._block.upload(turn, count, noise=draws)
        self._launch(count, masked=masked)()
        if not masked:  # `blend` writes back to the buffer that `denoise` reads
            self._now = 1 - self._now
        self._events[turn].record(self._stream)
        if self._calls:
            self._events[1 - turn].synchronize()
        self._calls += 1

    def _launch(self, count: int, *, masked: bool) -> Launch:
        key = (count, self._now, masked)
        if key not in self._launches:
            names = ("state", "next_state") if self._now == 0 else ("next_state", "state")
            now, after = (self._buffers.addresses[name] for name in names)
            addresses = self._buffers.addresses | self._block.addresses | {"state": now, "next_state": after}
            parts = [(self._denoise(count), self.bucket.sizes(count), addresses)]
            if masked:
                assert self._known is not None
                known = self._known.addresses | {"blend": self._block.addresses["blend"]}
                sizes = {symbol: self.bucket.sizes(count)[symbol] for symbol in "Bhw"}
                parts.append((self._blend(count), sizes, known | {"state": after, "next_state": now}))
            # For all of them first: growing it later would drop what is bound already.
            self._reserve_scratch(max(engine.scratch_size for engine, _, _ in parts))
            engines = [self._bind(*part) for part in parts]
            self._launches[key] = Launch(engines, self._stream)
            self._bound.callback(self._launches[key].close)
        return self._launches[key]

    def _denoise(self, count: int) -> DeviceEngine:
        return self._backend.fitted("denoise", self.bucket.sizes(count)).engine

    def _blend(self, count: int) -> DeviceEngine:
        sizes = {symbol: self.bucket.sizes(count)[symbol] for symbol in "Bhw"}
        fitted = self._backend.fitted("blend", sizes)
        if fitted.sizes != sizes:  # it would write beyond the end of the state
            raise BackendError(f"no engine of blend has the sizes of denoise, {sizes}: build both again")
        return fitted.engine

    def _bind(self, engine: DeviceEngine, sizes: Sizes, addresses: dict[str, int]) -> BoundEngine:
        """Bind an engine to the scratch memory that all engines of the stream share."""
        self._reserve_scratch(engine.scratch_size)
        assert self._scratch is not None
        own = {spec.name for spec in (*engine.spec.inputs, *engine.spec.outputs)}
        bound = engine.bind(sizes, {name: addresses[name] for name in own}, self._scratch)
        self._bound.callback(bound.close)
        return bound

    def _reserve_scratch(self, size: int) -> None:
        """Growing it drops everything that is bound to its address."""
        if self._scratch is None or self._scratch.size < size:
            self._forget_bound()
            self._scratch = DeviceMemory(size)
            self._bound.callback(self._scratch.close)

    def warm_up(self) -> None:
        """Run the largest batch in both directions. The state of all slots stays."""
        for _ in range(2):
            self.call(np.full(self.counts[-1], -1, np.int32))
        self._stream.synchronize()

    # --- reading ------------------------------------------------------------------------------------------------------

    def fetch(self, slot: int, register: int) -> Download:
        """See `Slots.fetch`."""
        spec = next(tensor for tensor in self._spec.inputs if tensor.name == "state")
        shape = shape_at(spec, self._sizes)[2:]
        return self._staging.download(self._state(slot) + register * 4 * int(np.prod(shape)), shape, np.float32)

    def _state(self, slot: int) -> int:
        return self._address(self._buffers, ("state", "next_state")[self._now], slot)

    def _address(self, buffers: Buffers, name: str, slot: int) -> int:
        return buffers.addresses[name] + slot * (buffers.sizes[name] // self.counts[-1])

    # --- closing ------------------------------------------------------------------------------------------------------

    def rest(self) -> None:
        """Wait until nothing runs."""
        self._stream.synchronize()

    def _forget_bound(self) -> None:
        bound, self._bound = self._bound, ExitStack()
        self._launches.clear()
        self._context = self._scratch = None
        with bound, suppress(BackendError):  # after an error of CUDA, what can be freed is freed
            self._stream.synchronize()

    def close(self) -> None:
        """Free all memory."""
        with self._opened:
            self._forget_bound()


def powers_of_two_to(count: int) -> list[int]:
    """1, 2, 4 and so on below `count`, then `count` itself."""
    return [*(1 << k for k in range((count - 1).bit_length())), count]
