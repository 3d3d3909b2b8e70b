"""The interface between the pipeline and the backends: engine, denoiser, backend.

Knows shapes and the order of calls; knows nothing about libraries, prompts or images. Device memory stays behind this
interface.
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
    """The sizes of a denoiser: images, guidance groups, latent height and width, text length in tokens."""

    batch: int
    groups: int
    height: int
    width: int
    tokens: int

    @property
    def sizes(self) -> Sizes:
        """The sizes by symbol of the bundle format."""
        return {"B": self.batch, "G": self.groups, "h": self.height, "w": self.width, "S": self.tokens}


@dataclass(frozen=True, slots=True, eq=False)
class DenoiseStep:
    """One finished call of the loop. `read(r)` waits for the device and copies register r, (B, C, h, w) float32, to the
    host; it works until the next step is requested. Register 0 is the sample, R-1 the predicted clean latents."""

    index: int
    total: int
    read: Callable[[int], Float32]


class Engine(Protocol):
    """A graph that runs once on host arrays."""

    @property
    def spec(self) -> Graph:
        """Names, dtypes and shapes of the tensors."""

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run the graph; returns all outputs by name."""


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
        """Run the loop, with one plan per image; yields after every model call.

        Args:
            context: (B, G, S, D), hidden states of the text, groups ordered [negative, positive].
            guidance: (B, G), weights of the groups' predictions.
            guidance_rescale: (B,), 0 is off.
            noise: for each image (1 + draws, C, h, w), unit normal: the initial noise, then the draws in order.
            clean: (B, C, h, w), for plans that start from clean latents.
            time_inputs: inputs of the graph `time` besides timesteps, by name, each (B, G, …).
            extra: (B, 5, h, w), for inpainting UNets: the mask and the latents of the masked image.
            mask: (B, 1, h, w), for ordinary UNets: 1 where they draw; elsewhere `clean` is restored after each call.
        """


class Backend(Protocol):
    """Creates engines and denoisers for a bundle."""

    @property
    def name(self) -> str:
        """Library and device, such as "onnxruntime-cpu"."""

    def engine(self, graph: str) -> Engine:
        """The engine of a graph, created on first use and kept."""

    def denoiser(self, bucket: Bucket) -> Denoiser:
        """A denoiser for these sizes."""

    def set_weights(self, weights: NewWeights) -> None:
        """Use these weights from the next call on, and the bundle's own for all others."""

    def close(self) -> None:
        """Free all memory."""
