"""Slots in device memory.

A UNet call costs three driver calls that queue work, whatever the batch: an upload of its rows, a launch, an event. The
host then waits for the event of the call before, so that one call is queued while another runs. Two state buffers
alternate. Knows buffers and addresses; knows nothing about the library, which is behind `GpuBackend`.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from latentrt.runtime.bundle import Graph, TensorSpec, shape_at
from latentrt.runtime.errors import BackendError
from latentrt.runtime.gpu.device import Event, Stream
from latentrt.runtime.gpu.engine import DeviceEngine, GpuBackend
from latentrt.runtime.gpu.staging import Download
from latentrt.runtime.protocols import Bucket, Trajectory

from .call_block import CallBlock
from .gpu_nets import GpuNet
from .gpu_ports import GpuPorts
from .gpu_work import GpuWork, Part, SlotBuffers
from .tables import CALL_INPUTS, STRENGTH, CallRows, TimeFeatures, known_parts

_BLEND = TensorSpec("blend", "float32", ("B", 2))
_STATES = ("state", "next_state")


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
        nets: Mapping[str, GpuNet] | None = None,
    ) -> None:
        """All work of a shared stream must come from one thread; without it, the slots have a stream of their own.

        Raises `OutOfMemoryError`, and `BackendError` if an engine is missing or damaged; then nothing stays allocated.
        """
        self.bucket, self.counts = bucket, backend.batches(bucket.sizes(count))
        capacity = self.counts[-1]
        self._backend, self._features, self._spec = backend, features, denoise
        self._sizes, self._rows = bucket.sizes(capacity), CallRows(capacity)
        self._calls = self._now = 0  # `_now` is which of the states is the current one
        self._known: SlotBuffers | None = None
        work = self._work = GpuWork(shared)
        try:
            # Loaded now, so that missing or damaged engines are reported before the loop starts.
            work.reserve_scratch(self._denoise(capacity).scratch_size)
            self._events = work.open(Event()), work.open(Event())
            specs = {spec.name: spec for spec in denoise.inputs}
            each_call = [specs[name] for name in (*CALL_INPUTS, STRENGTH) if name in specs]
            self._block = work.open(CallBlock(work.stream, [*each_call, _BLEND], self._sizes, specs["noise"]))
            self._ports = GpuPorts(work, denoise, nets or {}, bucket, capacity)
            others = {*CALL_INPUTS, STRENGTH, "noise", *self._ports.zero}
            resident = [spec for spec in denoise.inputs if spec.name not in others]
            self._buffers = SlotBuffers(work, (*resident, *denoise.outputs), self._sizes)
        except BaseException:
            self.close()
            raise

    # --- filling ------------------------------------------------------------------------------------------------------

    def fill(self, slot: int, trajectory: Trajectory) -> None:
        """See `Slots.fill`."""
        self._rows.fill(slot, trajectory, self._features.of(trajectory))
        self._work.write(self._state(slot), trajectory.initial_state())
        self._work.fill_context(self._backend, "context", trajectory.context, self._buffers, slot)
        self._ports.fill(slot, trajectory)
        if trajectory.extra is not None:
            self._work.write(self._buffers.address("extra", slot), trajectory.extra)
        if trajectory.mask is not None and self._known is None:
            self._known = self._new_known()
        if self._known is not None:
            for name, value in known_parts(trajectory).items():
                row = np.broadcast_to(np.float32(value).ravel(), self._known.row_bytes(name) // 4)
                self._work.write(self._known.address(name, slot), row)

    def _new_known(self) -> SlotBuffers:
        """Inputs of `blend`; slots without a mask keep their whole state."""
        graph = self._blend(self.counts[-1]).spec
        inputs = [spec for spec in graph.inputs if spec.name in ("mask", "clean", "noise")]
        known = SlotBuffers(self._work, inputs, self._sizes)
        self._work.write(known.addresses["mask"], np.ones(self.counts[-1] * known.row_bytes("mask") // 4, np.float32))
        return known

    def move(self, source: int, target: int) -> None:
        """See `Slots.move`."""
        self._rows.move(source, target)
        others = self._buffers.addresses.keys() - _STATES
        self._buffers.move(source, target, names=(_STATES[self._now], *others))
        if self._known is not None:
            self._known.move(source, target)
        self._ports.move(source, target)

    # --- calls --------------------------------------------------------------------------------------------------------

    def call(self, at: NDArray[np.int32]) -> None:
        """See `Slots.call`."""
        calls = at.tolist()
        count = next(count for count in self.counts if count >= len(calls))
        draws, masked = self._rows.draws(calls), self._rows.masked(calls)
        turn = self._calls % 2
        self._rows.write(calls, self._block.rows(turn, count, whole=draws))
        self._block.upload(turn, count, whole=draws)
        ports = self._rows.ports(calls)
        nets = self._ports.upload(calls, turn, count, self._rows)
        self._launch(count, ports, nets, masked=masked)
        if not masked:  # `blend` writes back to the buffer that `denoise` reads
            self._now = 1 - self._now
        self._events[turn].record(self._work.stream)
        if self._calls:
            self._events[1 - turn].synchronize()
        self._calls += 1

    def _launch(self, count: int, ports: frozenset[str], nets: tuple[str, ...], *, masked: bool) -> None:
        key = (count, self._now, masked, ports, nets)
        known = self._work.launches(key)
        self._work.launch(key, () if known else self._parts(count, ports, nets, masked=masked))

    def _parts(self, count: int, ports: frozenset[str], nets: tuple[str, ...], *, masked: bool) -> list[Part]:
        """The engines of a call: ControlNets, the UNet, and what restores known latents."""
        now, after = (self._buffers.addresses[_STATES[which]] for which in (self._now, 1 - self._now))
        addresses = {**self._buffers.addresses, **self._block.addresses, **self._ports.addresses(ports)}
        addresses |= {"state": now, "next_state": after}
        parts = [*self._ports.parts(nets, count, now), (self._denoise(count), self.bucket.sizes(count), addresses)]
        if masked:
            assert self._known is not None
            known = {**self._known.addresses, "blend": self._block.addresses["blend"]}
            sizes = {symbol: self.bucket.sizes(count)[symbol] for symbol in "Bhw"}
            parts.append((self._blend(count), sizes, known | {"state": after, "next_state": now}))
        return parts

    def _denoise(self, count: int) -> DeviceEngine:
        return self._backend.fitted("denoise", self.bucket.sizes(count)).engine

    def _blend(self, count: int) -> DeviceEngine:
        sizes = {symbol: self.bucket.sizes(count)[symbol] for symbol in "Bhw"}
        fitted = self._backend.fitted("blend", sizes)
        if fitted.sizes != sizes:  # it would write beyond the end of the state
            raise BackendError(f"no engine of blend has the sizes of denoise, {sizes}: build both again")
        return fitted.engine

    def warm_up(self) -> None:
        """Run the largest batch in both directions. The state of all slots stays."""
        for _ in range(2):
            self.call(np.full(self.counts[-1], -1, np.int32))
        self._work.stream.synchronize()

    # --- reading ------------------------------------------------------------------------------------------------------

    def fetch(self, slot: int, register: int) -> Download:
        """See `Slots.fetch`."""
        spec = next(tensor for tensor in self._spec.inputs if tensor.name == "state")
        shape = shape_at(spec, self._sizes)[2:]
        return self._work.staging.download(self._state(slot) + register * 4 * int(np.prod(shape)), shape, np.float32)

    def _state(self, slot: int) -> int:
        return self._buffers.address(_STATES[self._now], slot)

    # --- closing ------------------------------------------------------------------------------------------------------

    def rest(self) -> None:
        """Wait until nothing runs."""
        self._work.stream.synchronize()

    def close(self) -> None:
        """Free all memory."""
        self._work.close()


def powers_of_two_to(count: int) -> list[int]:
    """1, 2, 4 and so on below `count`, then `count` itself."""
    return [*(1 << k for k in range((count - 1).bit_length())), count]
