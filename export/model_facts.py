"""The manifest's model and defaults, from a checkpoint's configs."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from latentrt.export.checkpoint.checkpoint import Checkpoint
from latentrt.export.checkpoint.families import TextEncoderRow
from latentrt.export.graphs import text_encoder, vae
from latentrt.runtime.bundle import Defaults, Model, TextEncoder
from latentrt.runtime.errors import CheckpointError, SchedulerError
from latentrt.runtime.scheduler import REGISTERS, Plan, resolve


def model_of(checkpoint: Checkpoint, tokenizers: Mapping[str, Any]) -> Model:
    """Properties of the model that no user changes.

    Args:
        tokenizers: text encoder's folder -> its `CLIPTokenizer`.
    """
    configs, family = checkpoint.configs, checkpoint.family
    factor = vae.scale_factor(configs["vae"])
    return Model(
        family=family.name,
        prediction_type=configs["scheduler"].get("prediction_type", "epsilon"),
        latent_channels=configs["unet"].get("out_channels", 4),
        vae_scale_factor=factor,
        vae_tile=vae.tile_side(configs["vae"]) // factor,
        scaling_factor=configs["vae"].get("scaling_factor", 0.18215),
        registers=REGISTERS,
        image_rounding="half_to_even",
        force_zeros_for_empty_prompt=checkpoint.index.get(
            "force_zeros_for_empty_prompt", family.zeros_for_empty_prompt
        ),
        text_encoders=tuple(_text_encoder(checkpoint, row, tokenizers[row.part]) for row in family.text_encoders),
    )


def _text_encoder(checkpoint: Checkpoint, row: TextEncoderRow, tokenizer: Any) -> TextEncoder:
    config = checkpoint.configs[row.part]
    return TextEncoder(
        graph=row.part,
        tokenizer=f"{row.tokenizer}/tokenizer.json",
        max_length=checkpoint.max_length(row),
        bos=tokenizer.bos_token_id,
        eos=tokenizer.eos_token_id,
        pad=tokenizer.pad_token_id,
        hidden_size=config["hidden_size"],
        hidden_states=text_encoder.hidden_states(config, row),
        pooled=row.pooled,
        embeddings=checkpoint.embeddings(row.tokenizer),
    )


def defaults_of(checkpoint: Checkpoint, num_inference_steps: int | None, guidance_scale: float | None) -> Defaults:
    """Defaults for calls: the given values, else diffusers' defaults for the pipeline class."""
    factor, preset = vae.scale_factor(checkpoint.configs["vae"]), checkpoint.preset
    height, width = _sides(checkpoint.configs["unet"].get("sample_size") or 64)
    if num_inference_steps is not None:
        preset = replace(preset, num_inference_steps=num_inference_steps)
    if guidance_scale is not None:
        preset = replace(preset, guidance_scale=guidance_scale)
    return Defaults(
        height=height * factor,
        width=width * factor,
        num_inference_steps=preset.num_inference_steps,
        guidance_scale=preset.guidance_scale,
        strength=preset.strength,
        inpaint_strength=preset.inpaint_strength,
    )


def golden_scheduler(config: Mapping[str, Any], num_inference_steps: int) -> tuple[dict[str, Any], str]:
    """The scheduler that draws the golden image, and why it is not the checkpoint's own; "" if it is.

    Raises `CheckpointError` if no scheduler can use the checkpoint's config.
    """
    reason = ""
    for scheduler in (None, "ddim", "euler"):
        try:
            chosen = resolve(scheduler, config)
            Plan.from_config(chosen, num_inference_steps)
        except SchedulerError as error:
            reason = reason or str(error)
        else:
            return chosen, reason
    raise CheckpointError(f"the checkpoint's scheduler config cannot be used: {reason}")


def _sides(size: int | list[int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])
