"""The seam between the pipeline and whatever runs the graphs: an engine, a denoiser, a backend.

Knows shapes and order of calls; knows nothing of ONNX Runtime, TensorRT, prompts or pictures. Device memory stays on
the other side of this seam.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray

from latentrt.runtime.bundle import Graph, Sizes
from latentrt.runtime.scheduler import Plan

from .arrays import NO_INPUTS, Float32, NewWeights


@dataclass(frozen=True, slots=True)
class Bucket:
    """The sizes that a denoiser is made for: images, guidance groups, latent height and width, text length."""

    batch: int
    groups: int
    height: int
    width: int
    tokens: int

    @property
    def sizes(self) -> Sizes:
        """The sizes by the symbols of the bundle's format."""
        return {"B": self.batch, "G": self.groups, "h": self.height, "w": self.width, "S": self.tokens}


@dataclass(frozen=True, slots=True, eq=False)
class DenoiseStep:
    """One finished call of the loop. `read(r)` copies register r, (B, C, h, w) float32, to the host; it waits for the
    device, and is valid until the next step is asked for. Register 0 is the sample, R-1 the predicted clean latents."""

    index: int
    total: int
    read: Callable[[int], Float32]


class Engine(Protocol):
    """A graph that runs once on host arrays."""

    @property
    def spec(self) -> Graph:
        """Names, types and shapes of the tensors."""

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """All outputs by name."""


class Denoiser(Protocol):
    """The loop for one bucket of sizes."""

    def run(
        self,
        plans: Sequence[Plan],
        *,
        context: Float32,
        guidance: Float32,
        guidance_rescale: Float32,
        noise: Sequence[Float32],
        clean: Float32 | None = None,
        time_inputs: Mapping[str, Float32] = NO_INPUTS,
        extra: Float32 | None = None,
        mask: Float32 | None = None,
    ) -> Iterator[DenoiseStep]:
        """Run one plan for each image.

        Args:
            context: (B, G, S, D), hidden states of the text, groups ordered [negative, positive].
            guidance: (B, G), weights of the groups' predictions.
            guidance_rescale: (B,), 0 is off.
            noise: for each image (1 + draws, C, h, w), unit normal: the initial noise, then the draws in order.
            clean: (B, C, h, w), for plans that begin from clean latents.
            time_inputs: what the graph `time` takes beside timesteps, by name, each (B, G, …).
            extra: (B, 5, h, w), for UNets that inpaint: the mask, and the latents of the masked picture.
            mask: (B, 1, h, w), 1 where ordinary UNets draw; elsewhere `clean` is put back after each call.
        """


class Backend(Protocol):
    """Makes engines and denoisers from a bundle."""

    @property
    def name(self) -> str:
        """What runs where, such as "onnxruntime-cpu"."""

    def engine(self, graph: str) -> Engine:
        """The engine of a graph, made on first use and kept."""

    def denoiser(self, bucket: Bucket) -> Denoiser:
        """A denoiser for these sizes."""

    def set_weights(self, weights: NewWeights) -> None:
        """Compute with these weights from the next call on, and with the bundle's own for all that is not named."""

    def close(self) -> None:
        """Give all memory back."""
