"""The ports of `denoise` on a GPU; `host_ports` has the same rules in host memory.

While no image of a call uses a kind of port, its inputs are bound to one buffer of zeros, which all ports share.
"""

import math
from collections.abc import Mapping, Sequence

from latentrt.runtime.arrays import DTYPES
from latentrt.runtime.bundle import Graph, shape_at
from latentrt.runtime.gpu.device import DeviceMemory
from latentrt.runtime.protocols import Bucket, Trajectory

from .gpu_nets import GpuNet, GpuNets
from .gpu_work import GpuWork, Part, SlotBuffers
from .tables import CallRows, ports_of


class GpuPorts:
    """The ports of some slots."""

    def __init__(
        self, work: GpuWork, denoise: Graph, nets: Mapping[str, GpuNet], bucket: Bucket, capacity: int
    ) -> None:
        self._work, self._specs = work, ports_of(denoise)
        self._sizes = bucket.sizes(capacity)
        specs = [spec for of_port in self._specs.values() for spec in of_port]
        self.zero: dict[str, int] = {}  # port's input -> where zeros are
        if specs:
            most = max(math.prod(shape_at(spec, self._sizes)) * DTYPES[spec.dtype].bytes for spec in specs)
            block = work.open(DeviceMemory(most))
            work.stream.zero(block)
            self.zero = dict.fromkeys((spec.name for spec in specs), block.address)
        self._fed: dict[str, SlotBuffers] = {}  # port -> its own buffers
        residuals = self._specs.get("control", [])
        zero = {spec.name: self.zero[spec.name] for spec in residuals}
        self._nets = GpuNets(work, nets, residuals, zero, bucket, capacity)

    def fill(self, slot: int, trajectory: Trajectory) -> None:
        """See `Slots.fill`."""
        self._nets.fill(slot, trajectory)
        if trajectory.image_prompt is not None:
            own = self._own("ip-adapter")
            for name, array in trajectory.image_prompt.tensors.items():
                self._work.write(own.address(name, slot), array)
        if trajectory.features is not None or "t2i" in self._fed:
            own = self._own("t2i")
            self._clear(own, slot)
            for name, array in trajectory.features.tensors.items() if trajectory.features is not None else ():
                for group in range(len(trajectory.context)):
                    self._work.write(own.address(name, slot) + group * array.nbytes, array)

    def move(self, source: int, target: int) -> None:
        """See `Slots.move`."""
        self._nets.move(source, target)
        for buffers in self._fed.values():
            buffers.move(source, target)

    def upload(self, at: Sequence[int], turn: int, count: int, rows: CallRows) -> tuple[str, ...]:
        """Write the rows of a call, and clear what ends with it; returns the nets that have a say."""
        if "t2i" in self._fed:
            for slot in rows.ended(at):
                self._clear(self._fed["t2i"], slot)
        return self._nets.upload(at, turn, count)

    def parts(self, running: Sequence[str], count: int, state: int) -> list[Part]:
        """What a launch runs before `denoise`."""
        return self._nets.parts(running, count, state)

    def addresses(self, ports: frozenset[str]) -> dict[str, int]:
        """What `denoise` reads in calls with these ports."""
        found = dict(self.zero)
        if "control" in ports:
            found |= self._nets.residuals
        for port in ports & self._fed.keys():
            found |= self._fed[port].addresses
        return found

    def _clear(self, buffers: SlotBuffers, slot: int) -> None:
        for name in buffers.addresses:
            self._work.stream.copy(buffers.address(name, slot), self.zero[name], buffers.row_bytes(name))

    def _own(self, port: str) -> SlotBuffers:
        if port not in self._fed:
            self._fed[port] = SlotBuffers(self._work, self._specs[port], self._sizes)
        return self._fed[port]
