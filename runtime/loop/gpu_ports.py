"""The ports of `denoise` on a GPU; `host_ports` has the same rules in host memory.

While no image of a call uses a kind of port, its inputs are bound to one buffer of zeros, which all ports share.
"""

import math
from collections.abc import Mapping, Sequence

from latentrt.runtime.arrays import DTYPES
from latentrt.runtime.bundle import Graph, shape_at
from latentrt.runtime.gpu.buffers import Buffers
from latentrt.runtime.gpu.device import DeviceMemory
from latentrt.runtime.protocols import Bucket, Trajectory

from .gpu_nets import GpuNet, GpuNets
from .gpu_work import GpuWork, Part, row_address, row_bytes
from .tables import CallRows, ports_of


class GpuPorts:
    """The ports of some slots."""

    def __init__(
        self, work: GpuWork, denoise: Graph, nets: Mapping[str, GpuNet], bucket: Bucket, capacity: int
    ) -> None:
        self._work, self._specs = work, ports_of(denoise)
        self._sizes, self._capacity = bucket.sizes(capacity), capacity
        specs = [spec for of_port in self._specs.values() for spec in of_port]
        self.zero: dict[str, int] = {}  # port's input -> where zeros are
        if specs:
            most = max(math.prod(shape_at(spec, self._sizes)) * DTYPES[spec.dtype].bytes for spec in specs)
            block = work.open(DeviceMemory(most))
            work.stream.zero(block)
            self.zero = dict.fromkeys((spec.name for spec in specs), block.address)
        self._fed: dict[str, Buffers] = {}  # port -> its own buffers
        residuals = self._specs.get("control", [])
        zero = {spec.name: self.zero[spec.name] for spec in residuals}
        self._nets = GpuNets(work, nets, residuals, zero, bucket, capacity)

    def fill(self, slot: int, trajectory: Trajectory) -> None:
        """See `Slots.fill`."""
        self._nets.fill(slot, trajectory)
        if trajectory.image_prompt is not None:
            for name, array in trajectory.image_prompt.tensors.items():
                self._work.write(row_address(self._own("ip-adapter"), name, slot, self._capacity), array)
        if trajectory.features is not None:
            groups = len(trajectory.context)
            self._own("t2i")
            self._clear(slot)
            for name, array in trajectory.features.tensors.items():
                for group in range(groups):
                    start = row_address(self._own("t2i"), name, slot, self._capacity)
                    self._work.write(start + group * array.nbytes, array)
        elif "t2i" in self._fed:
            self._clear(slot)

    def move(self, source: int, target: int) -> None:
        """See `Slots.move`."""
        self._nets.move(source, target)
        for buffers in self._fed.values():
            for name in buffers.addresses:
                to, of = (row_address(buffers, name, slot, self._capacity) for slot in (target, source))
                self._work.stream.copy(to, of, row_bytes(buffers, name, self._capacity))

    def upload(self, at: Sequence[int], turn: int, count: int, rows: CallRows) -> tuple[str, ...]:
        """Write the rows of a call, and clear what ends with it; returns the nets that have a say."""
        if "t2i" in self._fed:
            for slot in rows.ended(at):
                self._clear(slot)
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

    def _clear(self, slot: int) -> None:
        buffers = self._fed["t2i"]
        for name in buffers.addresses:
            start = row_address(buffers, name, slot, self._capacity)
            self._work.stream.copy(start, self.zero[name], row_bytes(buffers, name, self._capacity))

    def _own(self, port: str) -> Buffers:
        if port not in self._fed:
            self._fed[port] = self._work.open(Buffers(self._work.stream, self._specs[port], self._sizes))
        return self._fed[port]
