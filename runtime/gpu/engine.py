"""What the loop needs from a library for GPUs: engines that are bound to sizes and addresses, then enqueued."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from latentrt.runtime.arrays import Layers
from latentrt.runtime.bundle import Graph, Sizes

from .device import DeviceMemory


class BoundEngine(Protocol):
    """An engine with its sizes, addresses and scratch memory."""

    def __call__(self, stream: int) -> None:
        """Enqueue it on a stream; raises `BackendError` with the library's error."""

    def capturable(self, stream: int) -> bool:
        """Whether this can be captured as a CUDA graph, after it ran once; libraries that do it themselves say no."""

    def close(self) -> None:
        """Free it; it must not be running."""


class DeviceEngine(Protocol):
    """A graph loaded on a GPU by some library.

    Attributes:
        scratch_size: bytes of scratch memory that a bound engine needs.
    """

    spec: Graph
    scratch_size: int

    def bind(self, sizes: Sizes, addresses: Mapping[str, int], scratch: DeviceMemory) -> BoundEngine:
        """Bind all tensors; the stream's work is in order, so bound engines of one stream may share scratch memory."""


@dataclass(frozen=True, slots=True, eq=False)
class Fitted:
    """A loaded engine and the sizes to run it at: the requested ones, or a few rows more or less."""

    engine: DeviceEngine
    sizes: Sizes


class GpuBackend(Protocol):
    """What finds engines."""

    def fitted(self, graph: str, sizes: Sizes, *, split: bool = False) -> Fitted:
        """The best engine for these sizes; with `split`, rows may be spread over several runs.

        Raises `BackendError`, with the build command, if none fits.
        """

    def batches(self, sizes: Sizes) -> Sequence[int]:
        """The numbers of images that `denoise` can run, ascending, up to the first one that holds `sizes["B"]`."""

    def run(self, graph: str, inputs: Mapping[str, Any], layers: Layers = None) -> dict[str, Any]:
        """Run a graph on host arrays, see `Engine.run`."""
