"""ControlNets in host memory: each adds its residuals to those of the nets before it.

The first reads zeros, and the last writes what `denoise` reads; between them two sets of buffers alternate.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentrt.runtime.bundle import TensorSpec
from latentrt.runtime.bundle.manifest import PORTS
from latentrt.runtime.protocols import Bucket, Trajectory

from .host_engine import Arrays, BoundCall, HostNet, first_rows, move_rows, slot_of, zero_inputs, zeros_for
from .net_rows import NetRows

RESIDUAL, PREVIOUS = PORTS["control"], "previous_"


class _NetSlots:
    """The slots of one net."""

    def __init__(self, name: str, net: HostNet, bucket: Bucket, count: int) -> None:
        self._engine, self._count = net.engine, count
        self._control = net.engine("control")
        inputs = zero_inputs(self._control.spec, bucket.sizes(count))
        self._inputs = {n: a for n, a in inputs.items() if n != "state" and not n.startswith(PREVIOUS)}
        self.rows = NetRows(name, count, net.features)

    def fill(self, slot: int, trajectory: Trajectory) -> None:
        """Write what a trajectory asks of the net."""
        control = self.rows.fill(slot, trajectory)
        if control is None:
            return
        new = self._engine("control_context").run({"hidden_states": trajectory.context})
        new["hint_features"] = control.hint[None]
        if "task" in self._inputs:
            new["task"] = np.array([control.task])
        for name, array in new.items():
            slot_of(self._inputs[name], slot, self._count)[:] = array

    def move(self, source: int, target: int) -> None:
        """See `Slots.move`."""
        self.rows.move(source, target)
        move_rows(self._inputs.values(), source, target, self._count)

    def write(self, at: Sequence[int]) -> None:
        """Write the rows of a call."""
        self.rows.write(at, first_rows(self._inputs, len(at), self._count), len(at))

    def bind(self, count: int, state: NDArray[Any], previous: Arrays, residuals: Arrays) -> BoundCall:
        """Bind the first rows to a state and to what it adds to and gives, both under the names of residuals."""
        own = first_rows(self._inputs, count, self._count)
        before = {name.replace(RESIDUAL, PREVIOUS): array for name, array in previous.items()}
        return self._control.bind({**own, **before, "state": state}, residuals)


class HostNets:
    """All nets of some slots; each gets its buffers when an image first uses it."""

    def __init__(
        self,
        nets: Mapping[str, HostNet],
        residuals: Sequence[TensorSpec],
        zeros: Arrays,
        bucket: Bucket,
        count: int,
    ) -> None:
        """`zeros` are arrays like the residuals."""
        self._known, self._specs, self._zeros, self._bucket, self._count = nets, residuals, zeros, bucket, count
        self._nets: dict[str, _NetSlots] = {}
        self._sets: list[dict[str, NDArray[Any]]] = []  # the first is what `denoise` reads
        self._bound: dict[tuple[str, int, int, int], BoundCall] = {}

    def fill(self, slot: int, trajectory: Trajectory) -> None:
        """See `Slots.fill`."""
        for control in trajectory.controls:
            if control.net not in self._nets:
                self._nets[control.net] = _NetSlots(control.net, self._known[control.net], self._bucket, self._count)
        for net in self._nets.values():
            net.fill(slot, trajectory)

    def move(self, source: int, target: int) -> None:
        """See `Slots.move`."""
        for net in self._nets.values():
            net.move(source, target)

    def run(self, at: Sequence[int], states: Sequence[NDArray[Any]], now: int) -> Arrays:
        """Run the nets that have a say in a call; returns the residuals, for all slots."""
        running = [name for name in self._known if name in self._nets and self._nets[name].rows.run(at)]
        for place, name in enumerate(running):
            self._nets[name].write(at)
            self._call(name, place, len(running), len(at), states[now], now)()
        return self.residuals

    @property
    def residuals(self) -> Arrays:
        """What `denoise` reads in calls with a net."""
        return self._set(0)

    def _call(self, name: str, place: int, of: int, count: int, state: NDArray[Any], now: int) -> BoundCall:
        last = of - 1 - place
        key = (name, count, now, 2 * (last % 2) + (place == 0))
        if key not in self._bound:
            previous = first_rows(self._zeros if place == 0 else self._set(1 - last % 2), count, self._count)
            residuals = first_rows(self._set(last % 2), count, self._count)
            self._bound[key] = self._nets[name].bind(count, state[:count], previous, residuals)
        return self._bound[key]

    def _set(self, which: int) -> Arrays:
        while len(self._sets) <= which:
            sizes = self._bucket.sizes(self._count)
            self._sets.append({spec.name: zeros_for(spec, sizes) for spec in self._specs})
        return self._sets[which]

    def close(self) -> None:
        """Forget all buffers."""
        self._bound.clear()
        self._nets.clear()
        self._sets.clear()
