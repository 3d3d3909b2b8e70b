"""Slots in host memory, for libraries that run a graph on given buffers.

Knows the order of calls and which buffer goes where; knows nothing about the libraries. Two state buffers alternate, so
the state is never copied. A call runs on the first rows of all buffers.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from latentrt.runtime.arrays import DTYPES, Float32
from latentrt.runtime.bundle import Graph, Sizes, shape_at
from latentrt.runtime.protocols import Bucket, Engine, Trajectory

from .tables import CallRows, TimeFeatures, known_parts

Arrays = Mapping[str, NDArray[Any]]
# Runs a graph on its bound buffers.
BoundCall = Callable[[], None]


class HostEngine(Engine, Protocol):
    """An engine that can be bound to arrays of the caller."""

    def bind(self, inputs: Arrays, outputs: Arrays) -> BoundCall:
        """Bind contiguous arrays. Every call reads the current content of the inputs and writes to the outputs."""


@dataclass(frozen=True, slots=True, eq=False)
class _Copied:
    """See `Fetch`."""

    array: Float32

    def result(self) -> Float32:
        return self.array


class HostSlots:
    """See `Slots`. Each call runs exactly as many rows as it has images."""

    def __init__(
        self,
        bucket: Bucket,
        count: int,
        *,
        denoise: HostEngine,
        engine: Callable[[str], HostEngine],
        features: TimeFeatures,
    ) -> None:
        """`engine` gives the engines of `context` and `blend`."""
        self.bucket, self.counts = bucket, range(1, count + 1)
        self._denoise, self._engine, self._features = denoise, engine, features
        self._sizes = bucket.sizes(count)
        self._inputs = _zeros(denoise.spec, self._sizes)
        state = self._inputs.pop("state")
        self._states, self._now = (state, np.zeros_like(state)), 0
        self._known: dict[str, NDArray[Any]] = {}  # inputs of `blend`; empty until an image has a mask
        self._rows = CallRows(count)
        self._bound: dict[tuple[str, int, int], BoundCall] = {}

    def fill(self, slot: int, trajectory: Trajectory) -> None:
        """See `Slots.fill`."""
        self._rows.fill(slot, trajectory, self._features.of(trajectory))
        self._states[self._now][slot] = trajectory.initial_state()
        new = self._engine("context").run({"hidden_states": trajectory.context})
        if trajectory.extra is not None:
            new["extra"] = trajectory.extra[None]
        for name, array in new.items():
            self._slot_of(self._inputs[name], slot)[:] = array
        if trajectory.mask is not None and not self._known:
            self._known = _zeros(self._engine("blend").spec, self._sizes)
            del self._known["state"]
            self._known["mask"][:] = 1
        for name, value in known_parts(trajectory).items() if self._known else ():
            self._known[name][slot] = value

    def move(self, source: int, target: int) -> None:
        """See `Slots.move`."""
        self._rows.move(source, target)
        for array in (self._states[self._now], *self._inputs.values(), *self._known.values()):
            self._slot_of(array, target)[:] = self._slot_of(array, source)

    def call(self, at: NDArray[np.int32]) -> None:
        """See `Slots.call`."""
        calls, count = at.tolist(), len(at)
        masked = self._rows.masked(calls)
        changing = self._inputs | {"blend": self._known["blend"]} if masked else self._inputs
        self._rows.write(calls, self._first(changing, count))
        self._call("denoise", count)()
        if masked:  # `blend` writes back to the buffer that `denoise` reads
            self._call("blend", count)()
        else:
            self._now = 1 - self._now

    def fetch(self, slot: int, register: int) -> _Copied:
        """See `Slots.fetch`."""
        return _Copied(self._states[self._now][slot, register].copy())

    def close(self) -> None:
        """See `Slots.close`."""
        self._bound.clear()

    def _call(self, graph: str, count: int) -> BoundCall:
        """A graph on the first rows of its buffers."""
        key = (graph, count, self._now)
        if key not in self._bound:
            now, after = self._states[self._now][:count], self._states[1 - self._now][:count]
            if graph == "denoise":
                inputs = self._first(self._inputs, count) | {"state": now}
                self._bound[key] = self._denoise.bind(inputs, {"next_state": after})
            else:
                inputs = self._first(self._known, count) | {"state": after}
                self._bound[key] = self._engine("blend").bind(inputs, {"next_state": now})
        return self._bound[key]

    def _first(self, arrays: Arrays, count: int) -> dict[str, NDArray[Any]]:
        """The rows of the first slots; some arrays have a row for each guidance group."""
        return {name: array[: len(array) // len(self.counts) * count] for name, array in arrays.items()}

    def _slot_of(self, array: NDArray[Any], slot: int) -> NDArray[Any]:
        rows = len(array) // len(self.counts)
        return array[slot * rows : (slot + 1) * rows]


def _zeros(graph: Graph, sizes: Sizes) -> dict[str, NDArray[Any]]:
    """Zeros for all inputs of a graph, by name."""
    return {spec.name: np.zeros(shape_at(spec, sizes), DTYPES[spec.dtype].numpy) for spec in graph.inputs}
