"""Slots in host memory, for libraries that run a graph on given buffers.

Knows the order of calls and which buffer goes where; knows nothing about the libraries. Two state buffers alternate, so
the state is never copied. A call runs on the first rows of all buffers.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentrt.runtime.arrays import Float32
from latentrt.runtime.protocols import Bucket, Trajectory

from .host_engine import BoundCall, HostEngine, HostNet, first_rows, move_rows, slot_of, zero_inputs, zeros_for
from .host_ports import HostPorts
from .tables import CallRows, TimeFeatures, known_parts


@dataclass(frozen=True, slots=True, eq=False)
class _Copied:
    """See `Fetch`."""

    array: Float32

    def result(self) -> Float32:
        return self.array


class HostSlots:
    """See `Slots`. Each call runs exactly as many rows as it has images, and one group where no image is guided."""

    def __init__(
        self,
        bucket: Bucket,
        count: int,
        *,
        denoise: HostEngine,
        engine: Callable[[str], HostEngine],
        features: TimeFeatures,
        any_groups: bool,
        nets: Mapping[str, HostNet] | None = None,
    ) -> None:
        """`engine` gives the engines of `context` and `blend`; `any_groups`: `denoise` also runs with one group."""
        self.bucket, self.counts = bucket, range(1, count + 1)
        self._denoise, self._engine, self._features = denoise, engine, features
        self._sizes = bucket.sizes(count)
        self._ports = HostPorts(denoise.spec, nets or {}, bucket, count)
        own = [spec for spec in denoise.spec.inputs if spec.name not in self._ports.zeros]
        self._inputs = {spec.name: zeros_for(spec, self._sizes) for spec in own}
        state = self._inputs.pop("state")
        self._states, self._now = (state, np.zeros_like(state)), 0
        self._known: dict[str, NDArray[Any]] = {}  # inputs of `blend`; empty until an image has a mask
        self._rows = CallRows(count)
        self._bound: dict[tuple[str, int, int, frozenset[str]], BoundCall] = {}
        self._last_group: dict[str, NDArray[Any]] | None = None  # inputs of a call with one group
        self._last_group_is_old = True
        self._any_groups = any_groups and bucket.groups > 1

    def fill(self, slot: int, trajectory: Trajectory) -> None:
        """See `Slots.fill`."""
        self._last_group_is_old = True
        self._rows.fill(slot, trajectory, self._features.of(trajectory))
        self._states[self._now][slot] = trajectory.initial_state()
        new = self._engine("context").run({"hidden_states": trajectory.context})
        if trajectory.extra is not None:
            new["extra"] = trajectory.extra[None]
        for name, array in new.items():
            slot_of(self._inputs[name], slot, len(self.counts))[:] = array
        self._ports.fill(slot, trajectory)
        if trajectory.mask is not None and not self._known:
            self._known = zero_inputs(self._engine("blend").spec, self._sizes)
            del self._known["state"]
            self._known["mask"][:] = 1
        for name, value in known_parts(trajectory).items() if self._known else ():
            self._known[name][slot] = value

    def move(self, source: int, target: int) -> None:
        """See `Slots.move`."""
        self._last_group_is_old = True
        self._rows.move(source, target)
        own = (self._states[self._now], *self._inputs.values(), *self._known.values())
        move_rows(own, source, target, len(self.counts))
        self._ports.move(source, target)

    def call(self, at: NDArray[np.int32]) -> None:
        """See `Slots.call`."""
        calls, count = at.tolist(), len(at)
        masked = self._rows.masked(calls)
        changing = self._inputs | {"blend": self._known["blend"]} if masked else self._inputs
        self._rows.write(calls, self._first(changing, count))
        ports = self._rows.ports(calls)
        self._ports.run(calls, ports, self._rows, self._states, self._now)
        if self._any_groups and not ports and self._rows.unguided(calls):
            self._copy_last_group(count)
            self._call("one group", count, ports)()
        else:
            self._call("denoise", count, ports)()
        if masked:  # `blend` writes back to the buffer that `denoise` reads
            self._call("blend", count, ports)()
        else:
            self._now = 1 - self._now

    def fetch(self, slot: int, register: int) -> _Copied:
        """See `Slots.fetch`."""
        return _Copied(self._states[self._now][slot, register].copy())

    def close(self) -> None:
        """See `Slots.close`."""
        self._bound.clear()
        self._ports.close()

    def _call(self, what: str, count: int, ports: frozenset[str]) -> BoundCall:
        """A graph on the first rows of its buffers."""
        key = (what, count, self._now, ports)
        if key not in self._bound:
            now, after = self._states[self._now][:count], self._states[1 - self._now][:count]
            if what == "blend":
                inputs = self._first(self._known, count) | {"state": after}
                self._bound[key] = self._engine("blend").bind(inputs, {"next_state": now})
            else:
                arrays = self._inputs | (self._last_group or {}) if what == "one group" else self._inputs
                inputs = self._first(arrays, count) | {"state": now}
                inputs |= self._ports.arrays(ports, count, one_group=what == "one group")
                self._bound[key] = self._denoise.bind(inputs, {"next_state": after})
        return self._bound[key]

    def _copy_last_group(self, count: int) -> None:
        """Keys and values are copied after a change of slots, time features always."""
        groups, capacity = self.bucket.groups, len(self.counts)
        if self._last_group is None:
            by_group = {name: array for name, array in self._inputs.items() if len(array) == capacity * groups}
            self._last_group = {name: np.zeros_like(array[::groups]) for name, array in by_group.items()}
            self._last_group["guidance"] = np.ones((capacity, 1), np.float32)
        names = {*self._last_group} - {"guidance"} if self._last_group_is_old else {"time_features"}
        for name in names:
            self._last_group[name][:count] = self._inputs[name][groups - 1 : count * groups : groups]
        self._last_group_is_old = False

    def _first(self, arrays: Mapping[str, NDArray[Any]], count: int) -> dict[str, NDArray[Any]]:
        return first_rows(arrays, count, len(self.counts))
