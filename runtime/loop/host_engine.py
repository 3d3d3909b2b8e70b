"""What the loop needs of a library in host memory: engines that are bound to arrays of the caller, and their rows."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from latentrt.runtime.arrays import DTYPES
from latentrt.runtime.bundle import Graph, Sizes, TensorSpec, shape_at
from latentrt.runtime.protocols import Engine

from .tables import TimeFeatures

Arrays = Mapping[str, NDArray[Any]]
# Runs a graph on its bound buffers.
BoundCall = Callable[[], None]


class HostEngine(Engine, Protocol):
    """An engine that can be bound to arrays of the caller."""

    def bind(self, inputs: Arrays, outputs: Arrays) -> BoundCall:
        """Bind contiguous arrays. Every call reads the current content of the inputs and writes to the outputs."""


@dataclass(frozen=True, slots=True, eq=False)
class HostNet:
    """A ControlNet: the engines of its graphs, and the features of its timesteps."""

    engine: Callable[[str], HostEngine]
    features: TimeFeatures


class HostBackend(Protocol):
    """A backend whose engines can be bound."""

    def engine(self, graph: str) -> HostEngine:
        """See `Backend.engine`."""


def host_net(backend: HostBackend) -> HostNet:
    """What the loop needs of a backend of a control bundle."""
    features = TimeFeatures(lambda graph, given: backend.engine(graph).run(given), "control_time")
    return HostNet(backend.engine, features)


def zeros_for(spec: TensorSpec, sizes: Sizes) -> NDArray[Any]:
    """Zeros for a tensor."""
    return np.zeros(shape_at(spec, sizes), DTYPES[spec.dtype].numpy)


def zero_inputs(graph: Graph, sizes: Sizes) -> dict[str, NDArray[Any]]:
    """Zeros for all inputs of a graph, by name."""
    return {spec.name: zeros_for(spec, sizes) for spec in graph.inputs}


def first_rows(arrays: Arrays, count: int, capacity: int) -> dict[str, NDArray[Any]]:
    """The rows of the first `count` of `capacity` slots; some arrays have a row for each guidance group."""
    return {name: array[: len(array) // capacity * count] for name, array in arrays.items()}


def move_rows(arrays: Iterable[NDArray[Any]], source: int, target: int, capacity: int) -> None:
    """Copy the rows of a slot."""
    for array in arrays:
        slot_of(array, target, capacity)[:] = slot_of(array, source, capacity)


def slot_of(array: NDArray[Any], slot: int, capacity: int) -> NDArray[Any]:
    """The rows of a slot."""
    rows = len(array) // capacity
    return array[slot * rows : (slot + 1) * rows]
