"""The protocol of GPU backends, and an engine for host arrays on top of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from latentrt.runtime.bundle import Graph, Sizes, sizes_of_inputs

from .lane import DeviceEngine
from .lane_pool import LanePool


@dataclass(frozen=True, slots=True, eq=False)
class Fitted:
    """A loaded engine and the sizes to run it at: the requested ones, or a few rows more or less."""

    engine: DeviceEngine
    sizes: Sizes


class GpuBackend(Protocol):
    """What the loop needs from a backend."""

    lanes: LanePool

    def fitted(self, graph: str, sizes: Sizes, *, split: bool = False) -> Fitted:
        """The best engine for these sizes; with `split`, rows may be spread over several runs.

        Raises `BackendError`, with the build command, if none fits.
        """


class GpuEngine:
    """Runs a graph on host arrays, split over several runs if the engine takes fewer rows."""

    def __init__(self, backend: GpuBackend, spec: Graph, graph: str) -> None:
        self.spec = spec
        self._backend, self._graph = backend, graph

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run the graph; returns all outputs by name."""
        sizes = sizes_of_inputs(self.spec, {name: array.shape for name, array in inputs.items()})
        fitted = self._backend.fitted(self._graph, sizes, split=True)
        rows = next(iter(inputs.values())).shape[0]
        step = fitted.sizes[str(self.spec.inputs[0].shape[0])]
        pieces: dict[str, list[NDArray[Any]]] = {spec.name: [] for spec in self.spec.outputs}
        with self._backend.lanes.one_shot_lane() as lane:
            context = lane.context(fitted.engine, fitted.sizes, kept=False)
            context.resize(fitted.sizes)
            for at in range(0, rows, step):
                for spec in self.spec.inputs:
                    context.write(spec.name, inputs[spec.name][at : at + step].astype(spec.dtype, copy=False))
                context.enqueue()
                for spec in self.spec.outputs:
                    pieces[spec.name].append(context.read(spec)[: rows - at])
        return {name: np.concatenate(parts) for name, parts in pieces.items()}
