"""ControlNets on a GPU; `host_nets` has the same chain of buffers in host memory."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from latentrt.runtime.bundle import Graph, TensorSpec
from latentrt.runtime.bundle.manifest import PORTS
from latentrt.runtime.errors import BackendError
from latentrt.runtime.gpu.buffers import Buffers
from latentrt.runtime.gpu.engine import GpuBackend
from latentrt.runtime.protocols import Bucket, Trajectory

from .call_block import CallBlock
from .gpu_work import GpuWork, Part, SlotBuffers
from .net_rows import NET_INPUTS, NetRows
from .tables import TimeFeatures

RESIDUAL, PREVIOUS = PORTS["control"], "previous_"


@dataclass(frozen=True, slots=True, eq=False)
class GpuNet:
    """A ControlNet: what finds its engines, the graph `control`, and the features of its timesteps."""

    backend: GpuBackend
    control: Graph
    features: TimeFeatures


def gpu_net(backend: GpuBackend, graphs: Mapping[str, Graph], features: TimeFeatures) -> GpuNet | None:
    """The ControlNet of a control bundle's backend; None for other control bundles, which no loop runs."""
    return GpuNet(backend, graphs["control"], features) if "control" in graphs else None


class _NetSlots:
    """The slots of one net."""

    def __init__(self, work: GpuWork, name: str, net: GpuNet, bucket: Bucket, capacity: int) -> None:
        self._work, self._net = work, net
        sizes = bucket.sizes(capacity)
        by_name = {spec.name: spec for spec in net.control.inputs}
        self._block = work.open(CallBlock(work.stream, [by_name[one] for one in NET_INPUTS], sizes))
        others = {*NET_INPUTS, "state", *(name for name in by_name if name.startswith(PREVIOUS))}
        own = [spec for spec in net.control.inputs if spec.name not in others]
        self._buffers = SlotBuffers(work, own, sizes)
        self.rows = NetRows(name, capacity, net.features)

    def fill(self, slot: int, trajectory: Trajectory) -> None:
        control = self.rows.fill(slot, trajectory)
        if control is None:
            return
        self._work.fill_context(self._net.backend, "control_context", trajectory.context, self._buffers, slot)
        self._work.write(self._buffers.address("hint_features", slot), control.hint)
        if "task" in self._buffers.addresses:
            self._work.write(self._buffers.address("task", slot), np.array([control.task], np.int64))

    def move(self, source: int, target: int) -> None:
        self.rows.move(source, target)
        self._buffers.move(source, target)

    def upload(self, at: Sequence[int], turn: int, count: int) -> None:
        """Write the rows of a call."""
        self.rows.write(at, self._block.rows(turn, count), count)
        self._block.upload(turn, count)

    def part(self, bucket: Bucket, count: int, state: int, previous: Mapping[str, int], out: Mapping[str, int]) -> Part:
        """The net as a part of a launch; what it adds to and gives, both under the names of residuals."""
        sizes = bucket.sizes(count)
        fitted = self._net.backend.fitted("control", sizes)
        if fitted.sizes["B"] != count:
            raise BackendError(f"no engine of control has the batch of denoise, {count}: build both for the same ones")
        before = {name.replace(RESIDUAL, PREVIOUS): address for name, address in previous.items()}
        addresses = {**self._buffers.addresses, **self._block.addresses, **before, **out, "state": state}
        return fitted.engine, sizes, addresses


class GpuNets:
    """All nets of some slots; each gets its buffers when an image first uses it."""

    def __init__(
        self,
        work: GpuWork,
        nets: Mapping[str, GpuNet],
        residuals: Sequence[TensorSpec],
        zero: Mapping[str, int],
        bucket: Bucket,
        capacity: int,
    ) -> None:
        """`zero` has an address for each residual, where zeros are."""
        self._work, self._known, self._specs, self._zero = work, nets, residuals, zero
        self._bucket, self._capacity = bucket, capacity
        self._nets: dict[str, _NetSlots] = {}
        self._sets: list[Buffers] = []  # the first is what `denoise` reads

    def fill(self, slot: int, trajectory: Trajectory) -> None:
        """See `Slots.fill`."""
        for control in trajectory.controls:
            if control.net not in self._nets:
                net = self._known[control.net]
                self._nets[control.net] = _NetSlots(self._work, control.net, net, self._bucket, self._capacity)
        for slots in self._nets.values():
            slots.fill(slot, trajectory)

    def move(self, source: int, target: int) -> None:
        """See `Slots.move`."""
        for net in self._nets.values():
            net.move(source, target)

    def upload(self, at: Sequence[int], turn: int, count: int) -> tuple[str, ...]:
        """Write the rows of the nets that have a say in a call; returns their names."""
        running = tuple(name for name in self._known if name in self._nets and self._nets[name].rows.run(at))
        for name in running:
            self._nets[name].upload(at, turn, count)
        return running

    def parts(self, running: Sequence[str], count: int, state: int) -> list[Part]:
        """What a launch runs before `denoise`."""
        found = []
        for place, name in enumerate(running):
            last = len(running) - 1 - place
            previous = self._zero if place == 0 else self._set(1 - last % 2).addresses
            found.append(self._nets[name].part(self._bucket, count, state, previous, self._set(last % 2).addresses))
        return found

    @property
    def residuals(self) -> Mapping[str, int]:
        """Addresses of what `denoise` reads in calls with a net."""
        return self._set(0).addresses

    def _set(self, which: int) -> Buffers:
        while len(self._sets) <= which:
            sizes = self._bucket.sizes(self._capacity)
            self._sets.append(self._work.open(Buffers(self._work.stream, self._specs, sizes)))
        return self._sets[which]
