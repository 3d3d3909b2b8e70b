"""The ports of `denoise` in host memory: inputs that ControlNets and adapters feed, and zeros where nothing does.

While no image of a call uses a kind of port, its inputs are bound to one block of zeros, which all ports share; buffers
of their own come with the first image that needs them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentrt.runtime.arrays import DTYPES
from latentrt.runtime.bundle import Graph, Sizes, TensorSpec, shape_at
from latentrt.runtime.protocols import Bucket, Trajectory

from .host_engine import Arrays, HostNet, first_rows, move_rows, slot_of, zeros_for
from .host_nets import HostNets
from .tables import CallRows, ports_of


class HostPorts:
    """The ports of some slots.

    Attributes:
        zeros: what each port reads while nothing feeds it, by name.
    """

    def __init__(self, denoise: Graph, nets: Mapping[str, HostNet], bucket: Bucket, count: int) -> None:
        self._specs = ports_of(denoise)
        self._sizes, self._bucket, self._count = bucket.sizes(count), bucket, count
        self.zeros = _zeros([spec for specs in self._specs.values() for spec in specs], self._sizes)
        self._fed: dict[str, dict[str, NDArray[Any]]] = {}  # port -> its own buffers
        residuals = self._specs.get("control", [])
        self._nets = HostNets(nets, residuals, {s.name: self.zeros[s.name] for s in residuals}, bucket, count)

    def fill(self, slot: int, trajectory: Trajectory) -> None:
        """See `Slots.fill`."""
        self._nets.fill(slot, trajectory)
        if trajectory.image_prompt is not None:
            for name, array in trajectory.image_prompt.tensors.items():
                slot_of(self._own("ip-adapter")[name], slot, self._count)[:] = array
        features = trajectory.features
        if features is not None or "t2i" in self._fed:
            for name, array in self._own("t2i").items():
                slot_of(array, slot, self._count)[:] = 0 if features is None else features.tensors.get(name, 0)

    def move(self, source: int, target: int) -> None:
        """See `Slots.move`."""
        self._nets.move(source, target)
        for arrays in self._fed.values():
            move_rows(arrays.values(), source, target, self._count)

    def run(
        self, at: Sequence[int], ports: frozenset[str], rows: CallRows, states: Sequence[NDArray[Any]], now: int
    ) -> None:
        """Run what feeds the ports of a call, from the state `now`."""
        if "control" in ports:
            self._nets.run(at, states, now)
        if "t2i" in self._fed:
            for slot in rows.ended(at):
                for array in self._fed["t2i"].values():
                    slot_of(array, slot, self._count)[:] = 0

    def arrays(self, ports: frozenset[str], count: int, *, one_group: bool) -> dict[str, NDArray[Any]]:
        """What `denoise` reads in a call with these ports, for its first rows."""
        own = {"control": self._nets.residuals} if "control" in ports else {}
        own |= {port: self._fed[port] for port in ports if port in self._fed}
        found = dict(self.zeros)
        for arrays in own.values():
            found |= arrays
        capacity = self._count * (self._bucket.groups if one_group else 1)
        return first_rows(found, count, capacity)

    def close(self) -> None:
        """Forget all buffers."""
        self._nets.close()
        self._fed.clear()

    def _own(self, port: str) -> dict[str, NDArray[Any]]:
        if port not in self._fed:
            self._fed[port] = {spec.name: zeros_for(spec, self._sizes) for spec in self._specs[port]}
        return self._fed[port]


def _zeros(specs: Sequence[TensorSpec], sizes: Sizes) -> Arrays:
    """Arrays of zeros by name, all in one block of the largest size."""
    shapes = {spec.name: (shape_at(spec, sizes), np.dtype(DTYPES[spec.dtype].numpy)) for spec in specs}
    bytes_of = {name: int(np.prod(shape)) * dtype.itemsize for name, (shape, dtype) in shapes.items()}
    block = np.zeros(max(bytes_of.values(), default=0), np.uint8)
    return {name: block[: bytes_of[name]].view(dtype).reshape(shape) for name, (shape, dtype) in shapes.items()}
