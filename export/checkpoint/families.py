"""Model families as rows of tables: their text encoders, and the extra inputs of their UNets.

Knows configs in the diffusers format; knows nothing of files and graphs. A new family is a new row.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from latentrt.runtime.errors import CheckpointError

Config = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class TextEncoderRow:
    """One text encoder of a family.

    Attributes:
        part, tokenizer: folders in the checkpoint.
        activation: activation function of its layers, which distinguishes families.
        final_norm: whether the UNet consumes hidden states after the final layer norm, starting at the last layer;
            otherwise it consumes them without the norm, starting at the penultimate layer.
        pooled: whether it has a projection whose output the UNet also consumes.
    """

    part: str
    tokenizer: str
    activation: str
    final_norm: bool
    pooled: bool = False


@dataclass(frozen=True, slots=True)
class Family:
    """A family and the assumptions of its pipelines.

    Attributes:
        text_encoders: in the order in which their hidden states are concatenated.
        vae_overflows: the VAE overflows in fp16, unless its config has `force_upcast: false`.
        latent_statistics: the pipelines use `latents_mean` and `latents_std` of the VAE's config.
        zeros_for_empty_prompt: an empty negative prompt becomes zeros, unless model_index.json specifies otherwise.
        aesthetic_score: the UNet is told an aesthetic score in place of the target size, as the pipelines have it with
            `requires_aesthetics_score`.
    """

    name: str
    text_encoders: tuple[TextEncoderRow, ...]
    vae_overflows: bool = False
    latent_statistics: bool = False
    zeros_for_empty_prompt: bool = False
    aesthetic_score: bool = False

    @property
    def time_ids(self) -> int:
        """Numbers that SDXL's UNets are told: original size, crop, and target size or aesthetic score."""
        return 5 if self.aesthetic_score else 6


_OPENCLIP_BIG_G = TextEncoderRow("text_encoder_2", "tokenizer_2", "gelu", final_norm=False, pooled=True)


FAMILIES = (
    Family("sd1", (TextEncoderRow("text_encoder", "tokenizer", "quick_gelu", final_norm=True),)),
    Family("sd2", (TextEncoderRow("text_encoder", "tokenizer", "gelu", final_norm=True),)),
    Family(
        "sdxl",
        (
            TextEncoderRow("text_encoder", "tokenizer", "quick_gelu", final_norm=False),
            _OPENCLIP_BIG_G,
        ),
        vae_overflows=True,
        latent_statistics=True,
        zeros_for_empty_prompt=True,
    ),
    Family(
        "sdxl-refiner",
        (_OPENCLIP_BIG_G,),
        vae_overflows=True,
        latent_statistics=True,
        zeros_for_empty_prompt=True,
        aesthetic_score=True,
    ),
)


@dataclass(frozen=True, slots=True)
class Preset:
    """Call defaults of a diffusers pipeline class and of its image-to-image and inpainting variants."""

    num_inference_steps: int
    guidance_scale: float
    strength: float
    inpaint_strength: float


PIPELINES = {
    "StableDiffusionPipeline": Preset(50, 7.5, 0.8, 1.0),
    "StableDiffusionImg2ImgPipeline": Preset(50, 7.5, 0.8, 1.0),
    "StableDiffusionInpaintPipeline": Preset(50, 7.5, 0.8, 1.0),
    "StableDiffusionXLPipeline": Preset(50, 5.0, 0.3, 0.9999),
    "StableDiffusionXLImg2ImgPipeline": Preset(50, 5.0, 0.3, 0.9999),
    "StableDiffusionXLInpaintPipeline": Preset(50, 7.5, 0.3, 0.9999),
    "LatentConsistencyModelPipeline": Preset(4, 8.5, 0.8, 1.0),
    "LatentConsistencyModelImg2ImgPipeline": Preset(4, 8.5, 0.8, 1.0),
}


def family_of(path: object, configs: Mapping[str, Config]) -> Family:
    """The family with the checkpoint's text encoders; raises `CheckpointError` if there is none.

    Args:
        path: the checkpoint, for error messages.
        configs: component -> its config.
    """
    parts = [part for part in ("text_encoder", "text_encoder_2") if part in configs]
    found = [(part, configs[part].get("hidden_act", "quick_gelu")) for part in parts]
    for family in FAMILIES:
        if [(row.part, row.activation) for row in family.text_encoders] == found:
            return family
    given = ", ".join(f"{part} with {activation}" for part, activation in found) or "no text encoder"
    raise CheckpointError(
        f"{path} has {given}, which matches no supported family: {', '.join(family.name for family in FAMILIES)}"
    )


@dataclass(frozen=True, slots=True)
class UNetInput:
    """A UNet input that is added to the timestep embedding; `shape` excludes the batch dimension."""

    name: str
    shape: tuple[int, ...]


def time_inputs(unet: Config, time_ids: int = 6) -> tuple[UNetInput, ...]:
    """Inputs added to the timestep embedding: pooled text and sizes (SDXL), guidance (distilled models).

    `time_ids`: see `Family.time_ids`; the config does not tell.
    """
    found = []
    if unet.get("addition_embed_type") == "text_time":
        pooled = unet["projection_class_embeddings_input_dim"] - time_ids * unet["addition_time_embed_dim"]
        found += [UNetInput("pooled", (pooled,)), UNetInput("time_ids", (time_ids,))]
    if unet.get("time_cond_proj_dim") is not None:
        found.append(UNetInput("guidance_embedding", (unet["time_cond_proj_dim"],)))
    return tuple(found)


def extra_channels(unet: Config) -> int:
    """Channels that follow the latents in the UNet's input: 5 for inpainting models, else 0."""
    return int(unet.get("in_channels", 4) - unet.get("out_channels", 4))
