"""Families of models as rows of tables: what their folders hold, and what their UNets take beside picture and text.

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
        activation: of its layers, which tells families apart.
        final_norm: whether the UNet consumes hidden states behind the final norm, from the last layer on; without, they
            are raw, from the last but one.
        pooled: whether it has a projection, whose output the UNet consumes, too.
    """

    part: str
    tokenizer: str
    activation: str
    final_norm: bool
    pooled: bool = False


@dataclass(frozen=True, slots=True)
class Family:
    """A family, with what its pipelines take for granted.

    Attributes:
        text_encoders: in the order in which their hidden states are joined.
        vae_overflows: in fp16, where the VAE's config does not say `force_upcast: false`.
        zeros_for_empty_prompt: no negative prompt is zeros, where model_index.json does not say otherwise.
    """

    name: str
    text_encoders: tuple[TextEncoderRow, ...]
    vae_overflows: bool = False
    zeros_for_empty_prompt: bool = False


FAMILIES = (
    Family("sd1", (TextEncoderRow("text_encoder", "tokenizer", "quick_gelu", final_norm=True),)),
    Family("sd2", (TextEncoderRow("text_encoder", "tokenizer", "gelu", final_norm=True),)),
    Family(
        "sdxl",
        (
            TextEncoderRow("text_encoder", "tokenizer", "quick_gelu", final_norm=False),
            TextEncoderRow("text_encoder_2", "tokenizer_2", "gelu", final_norm=False, pooled=True),
        ),
        vae_overflows=True,
        zeros_for_empty_prompt=True,
    ),
)


@dataclass(frozen=True, slots=True)
class Preset:
    """What a pipeline class of diffusers, and those for images beside it, draw with where a call says nothing."""

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
    """The family whose text encoders a checkpoint has; `configs` are its components' by folder."""
    parts = [part for part in ("text_encoder", "text_encoder_2") if part in configs]
    found = [(part, configs[part].get("hidden_act", "quick_gelu")) for part in parts]
    for family in FAMILIES:
        if [(row.part, row.activation) for row in family.text_encoders] == found:
            return family
    given = ", ".join(f"{part} with {activation}" for part, activation in found) or "no text encoder"
    raise CheckpointError(
        f"{path} has {given}, as no family that is known: {', '.join(family.name for family in FAMILIES)}"
    )


@dataclass(frozen=True, slots=True)
class UNetInput:
    """An input of a UNet that joins the embedding of the timestep; `shape` is that of one row."""

    name: str
    shape: tuple[int, ...]


def time_inputs(unet: Config) -> tuple[UNetInput, ...]:
    """What the UNet adds to the timestep's embedding: pooled text and sizes (SDXL), guidance (distilled models)."""
    found = []
    if unet.get("addition_embed_type") == "text_time":
        pooled = unet["projection_class_embeddings_input_dim"] - 6 * unet["addition_time_embed_dim"]
        found += [UNetInput("pooled", (pooled,)), UNetInput("time_ids", (6,))]
    if unet.get("time_cond_proj_dim") is not None:
        found.append(UNetInput("guidance_embedding", (unet["time_cond_proj_dim"],)))
    return tuple(found)


def extra_channels(unet: Config) -> int:
    """Channels behind the latents in the UNet's input: 5 where it inpaints, 0 where it does not."""
    return int(unet.get("in_channels", 4) - unet.get("out_channels", 4))


def check_models(path: object, unet: Config, vae: Config) -> None:
    """Refuse a UNet with inputs that are in no table, and latents that are scaled otherwise than by one number."""
    if extra_channels(unet) not in (0, 1 + unet.get("out_channels", 4)):
        raise CheckpointError(
            f"{path} has a UNet with {unet.get('in_channels', 4)} input channels; supported are 4 latent channels, "
            "alone or with a mask and the latents of the masked picture, which makes 9"
        )
    if unet.get("addition_embed_type") not in (None, "text_time"):
        raise CheckpointError(
            f"{path} has a UNet with addition_embed_type = {unet['addition_embed_type']!r}; supported is 'text_time'"
        )
    for key in ("class_embed_type", "encoder_hid_dim_type"):
        if unet.get(key) is not None:
            raise CheckpointError(f"{path} has a UNet with {key} = {unet[key]!r}, which is not supported")
    if vae.get("latents_mean") is not None or vae.get("latents_std") is not None:
        raise CheckpointError(f"{path} has a VAE with a mean and deviation for each channel, which is not supported")
