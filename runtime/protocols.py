"""The interface between the pipeline and the backends: engines, trajectories, slots, backend.

Knows shapes and the order of calls; knows nothing about libraries, prompts or images. Device memory stays behind this
interface.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from latentrt.runtime.bundle import Graph, Sizes
from latentrt.runtime.bundle.sizes import IMAGE_TOKENS
from latentrt.runtime.scheduler import Plan

from .arrays import Float32, Layers, NewWeights


@dataclass(frozen=True, slots=True)
class Bucket:
    """The sizes that images of one UNet call share.

    Attributes:
        groups: guidance groups.
        height, width: of the latents.
        tokens: of the text.
        image_tokens: of pictures for an IP-Adapter.
    """

    groups: int
    height: int
    width: int
    tokens: int
    image_tokens: int = IMAGE_TOKENS

    def sizes(self, batch: int) -> Sizes:
        """The sizes by symbol of the bundle format, for this many images."""
        images = {"B": batch, "G": self.groups, "h": self.height, "w": self.width}
        return {**images, "S": self.tokens, "T": self.image_tokens}


@dataclass(frozen=True, slots=True, eq=False)
class Control:
    """A ControlNet on one image.

    Attributes:
        net: its name in `Backend.nets`.
        hint: (C0, h, w), the embedded picture, in the net's dtype.
        weights: (M, G, J) float32, factors of its J residuals in each call; the net rests where they are all 0.
        time_inputs: inputs of the graph `control_time` besides timesteps, by name, each (G, width).
        task: of a ControlNet-Union, which kind of picture it is.
    """

    net: str
    hint: NDArray[Any]
    weights: Float32
    time_inputs: Mapping[str, Float32] = field(default_factory=dict)
    task: int = 0

    def runs(self, call: int) -> bool:
        """Whether the net has a say in this call."""
        return bool(self.weights[call].any())


@dataclass(frozen=True, slots=True, eq=False)
class ImagePrompt:
    """A picture that an IP-Adapter made keys and values of.

    Attributes:
        tensors: `image_key_*` and `image_value_*`, by name, each (G, T, C) in the UNet's dtype.
        strength: (M, G, L) float32, for each call and layer of cross-attention.
    """

    tensors: Mapping[str, NDArray[Any]]
    strength: Float32


@dataclass(frozen=True, slots=True, eq=False)
class AdapterFeatures:
    """The features of a T2I-Adapter.

    Attributes:
        tensors: `adapter_*`, by name, each (C, h/…, w/…) in the UNet's dtype.
        calls: they are added in the first this many calls.
    """

    tensors: Mapping[str, NDArray[Any]]
    calls: int


@dataclass(frozen=True, slots=True, eq=False)
class Trajectory:
    """One image on its way from noise to latents. It depends on no other image.

    Attributes:
        plan: M calls.
        context: (G, S, D), hidden states of the text, groups ordered [negative, positive].
        guidance: (M, G), weights of the groups' predictions in each call.
        noise: (1 + draws, C, h, w), unit normal: the initial noise, then the draws in order.
        guidance_rescale: 0 is off. Calls that take the last group's prediction alone are not rescaled.
        clean: (C, h, w), for plans that start from clean latents, and with a mask.
        mask: (1, h, w), for ordinary UNets: 1 where they draw; elsewhere `clean` is restored after each call.
        extra: (5, h, w), for inpainting UNets: the mask and the latents of the masked image.
        time_inputs: inputs of the graph `time` besides timesteps, by name, each (G, width).
        controls: ControlNets, each at most once.
        image_prompt, features: of an IP-Adapter and a T2I-Adapter.
    """

    plan: Plan
    context: Float32
    guidance: Float32
    noise: Float32
    guidance_rescale: float = 0.0
    clean: Float32 | None = None
    mask: Float32 | None = None
    extra: Float32 | None = None
    time_inputs: Mapping[str, Float32] = field(default_factory=dict)
    controls: tuple[Control, ...] = ()
    image_prompt: ImagePrompt | None = None
    features: AdapterFeatures | None = None

    @property
    def bucket(self) -> Bucket:
        """The sizes that images in the same call must share."""
        groups, tokens, _ = self.context.shape
        bucket = Bucket(groups, self.noise.shape[2], self.noise.shape[3], tokens)
        if self.image_prompt is None:
            return bucket
        return replace(bucket, image_tokens=next(iter(self.image_prompt.tensors.values())).shape[1])

    def initial_state(self) -> Float32:
        """(R, C, h, w), the state before the first call."""
        known = self.noise[0] * 0 if self.clean is None else self.clean
        state: Float32 = np.tensordot(self.plan.initial, np.stack([self.noise[0], known]), 1)
        return state


class Fetch(Protocol):
    """A copy of one register on its way to the host."""

    def result(self) -> Float32:
        """(C, h, w); waits for this copy, and for nothing behind it."""


class Slots(Protocol):
    """Rows of one `denoise`, resident on its device. Used by one thread at a time."""

    @property
    def bucket(self) -> Bucket:
        """The sizes of all images."""

    @property
    def counts(self) -> Sequence[int]:
        """The numbers of rows that a call can run, ascending; a call runs the smallest one that holds its images."""

    def fill(self, slot: int, trajectory: Trajectory) -> None:
        """Write the first state of a trajectory, and everything else that its slot needs."""

    def move(self, source: int, target: int) -> None:
        """Copy all of a slot to another one."""

    def call(self, at: NDArray[np.int32]) -> None:
        """Run one UNet call and its update for the first n slots.

        Queues the work, and returns when all calls before it have finished.

        Args:
            at: (n,), the call of each slot's plan; -1 leaves the state of a slot as it is.
        """

    def fetch(self, slot: int, register: int) -> Fetch:
        """Start copying a register of a slot. Register 0 is the sample, R-1 the predicted clean latents."""

    def close(self) -> None:
        """Give the memory back. May be called twice."""


class Engine(Protocol):
    """A graph that runs once on host arrays."""

    @property
    def spec(self) -> Graph:
        """Names, dtypes and shapes of the tensors."""

    def run(self, inputs: Mapping[str, NDArray[Any]], layers: Layers = None) -> dict[str, NDArray[Any]]:
        """Run the graph; returns all outputs by name, bfloat16 as uint16.

        Args:
            layers: copy only these of the output `hidden_states` (n, L, …); None is all.
        """


class Backend(Protocol):
    """Creates engines and slots for a bundle."""

    @property
    def name(self) -> str:
        """Library and device, such as "onnxruntime-cpu"."""

    @property
    def nets(self) -> Mapping[str, "Backend"]:
        """Backends of ControlNets and adapters, by the names that they were loaded with."""

    def engine(self, graph: str) -> Engine:
        """The engine of a graph, created on first use and kept."""

    def slots(self, bucket: Bucket, count: int) -> Slots:
        """Slots for this many images of these sizes. Close them."""

    def set_weights(self, weights: NewWeights) -> None:
        """Use these weights from the next call on, and the bundle's own for all others; while no slots are open."""

    def close(self) -> None:
        """Free all memory."""
