"""The manifest of a control bundle: what steers the UNet of any checkpoint of a family.

`engines/README.md` is the specification. A control bundle has no tokenizer, scheduler or VAE, and draws nothing alone.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from .manifest import CheckpointRecord, EngineRecord, File, Graph, Producer, Recipe, Weight
from .strict_json import schema

CONTROL_FORMAT = "latentrt.control/1"
CLIP_TOKENS = 77  # the texts of all families
_NET = ("hint", "control_time", "control_context", "control")
# Kind -> its graphs.
KINDS: Mapping[str, tuple[str, ...]] = {
    "controlnet": _NET,
    "controlnet-union": _NET,
    "t2i-adapter": ("adapter",),
    "ip-adapter": ("image_context",),
    "image-encoder": ("image_encoder",),
}
# Kind -> the port of `denoise` that it feeds.
PORT_OF = {"controlnet": "control", "controlnet-union": "control", "t2i-adapter": "t2i", "ip-adapter": "ip-adapter"}


@dataclass(frozen=True, slots=True, eq=False)
class ControlGolden:
    """What a runtime must reproduce: `file` holds inputs and outputs from PyTorch; `tolerance` is a relative error."""

    file: str
    tolerance: float


@dataclass(frozen=True, slots=True, eq=False)
class ControlManifest:
    """The content of bundle.json in a control bundle.

    Attributes:
        kind: one of `KINDS`.
        height, width: of the pictures that it was made for, in pixels; the default sizes of engines.
        vae_scale_factor: pixels along a side of a latent pixel.
        guess_mode: whether it leaves out the negative prompt in every call, as it was trained so.
        control_types: of a ControlNet-Union, the number of kinds of pictures that it takes; 0 for others.
        image_tokens: of an IP-Adapter, the tokens of one picture; 0 for others.
    """

    format: str
    kind: str
    producer: Producer
    checkpoint: CheckpointRecord
    recipe: Recipe
    height: int
    width: int
    vae_scale_factor: int
    graphs: dict[str, Graph]
    engines: tuple[EngineRecord, ...]
    golden: ControlGolden
    files: dict[str, File]
    guess_mode: bool = False
    control_types: int = 0
    image_tokens: int = 0

    @property
    def weights(self) -> Mapping[str, tuple[Weight, ...]]:
        """None that LoRA changes."""
        return {}

    @property
    def needed_graphs(self) -> tuple[str, ...]:
        """All of them."""
        return tuple(self.graphs)

    @property
    def pixels_of_latent(self) -> int:
        """Pixels along a side of a latent pixel."""
        return self.vae_scale_factor

    @property
    def usual_sizes(self) -> tuple[int, int, int]:
        """Height and width in pixels, and tokens of a text, that engines are built for by default."""
        return self.height, self.width, CLIP_TOKENS


def control_schema() -> str:
    """The text of `engines/control.schema.json`."""
    return json.dumps({"title": CONTROL_FORMAT, **schema(ControlManifest)}, indent=1) + "\n"
