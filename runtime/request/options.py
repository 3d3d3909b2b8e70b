"""The options of a call: names, types, limits and defaults."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from latentrt.runtime.arrays import Float32
from latentrt.runtime.errors import InputError, nearest_names
from latentrt.runtime.latents.given_images import Picture
from latentrt.runtime.scheduler.plan import Plan

OUTPUT_TYPES = ("pil", "np", "latent")
RNGS = ("cpu", "cuda")
LONG_PROMPTS = ("truncate", "chunk")


class CallOptions(TypedDict, total=False):
    """Keyword arguments of `Pipeline.__call__` and `Pipeline.stream`, named as in diffusers. None is the default.

    negative_prompt: what to move away from; one for all prompts or one for each. Used with guidance only. Not given,
        it is "", or zeros for models with `force_zeros_for_empty_prompt`.
    prompt_2, negative_prompt_2: texts for the second text encoder, where there are two (SDXL); default: the same.
    prompt_syntax: "plain" (default) takes prompts literally; "web-ui" reads `(word:1.2)`, `[word]` and `BREAK`, see
        `latentrt.runtime.prompt.parse`.
    long_prompt: "truncate" (default) cuts what the text encoder has no room for, with a warning; "chunk" encodes it
        in several chunks of 77 tokens. Shorter prompts of the call are then padded with empty chunks.
    height, width: of the picture in pixels, multiples of the VAE's factor 8.
    num_inference_steps: steps of the scheduler.
    guidance_scale: strength of the prompt; at 1 and below the negative prompt is not computed.
    num_images_per_prompt: pictures of each prompt.
    scheduler: a name (`latentrt.runtime.scheduler.scheduler_names()`), a diffusers config, or a compiled `Plan`.
    seed: of the first image, the others count on from it; or one for each image. None draws seeds, see `Result.seeds`.
    rng: whose noise a seed gives: "cpu" (default) or "cuda", as `torch.Generator` of that device.
    eta: noise of DDIM and TCD, 0 to 1.
    timesteps, sigmas: custom steps, where the scheduler takes them.
    clip_skip: layers of the text encoder to skip from its end, for the prompt but not for the negative prompt.
    guidance_rescale: 0 to 1, pulls the guided prediction back to the contrast of the unguided (arXiv 2305.08891).
    prompt_embeds, negative_prompt_embeds: (prompts, S, D) float32 hidden states instead of text.
    pooled_prompt_embeds, negative_pooled_prompt_embeds: (prompts, P) float32, beside them for SDXL.
    latents: (images, C, h, w) float32, or a .npy file of it, unit normal noise to start from instead of the seeds'.
    image: what to start from, one for all prompts or one for each: a file, a PIL image, an array (H, W, 3) of uint8 or
        of floats from 0 to 1, or latents (images, C, h, w), also as a .npy file. Height and width are then its own, if
        they are not given.
    mask_image: of the same kinds, light where the picture is drawn anew, dark where it is kept.
    strength: in (0, 1], how much of the image is drawn anew.
    original_size, crops_coords_top_left, target_size: (height, width), what SDXL is told of the picture's origin; the
        default is its size, and no crop. The same with negative_ before them, for the negative prompt.
    vae_tiling: decode and encode pictures larger than the VAE was trained for in tiles, which needs less memory.
    output_type: "pil" (default); "np", (images, H, W, 3) uint8; "latent", pictures are not decoded.
    """

    negative_prompt: str | Sequence[str] | None
    prompt_2: str | Sequence[str] | None
    negative_prompt_2: str | Sequence[str] | None
    prompt_syntax: str | None
    long_prompt: str | None
    height: int | None
    width: int | None
    num_inference_steps: int | None
    guidance_scale: float | None
    num_images_per_prompt: int
    scheduler: "str | Mapping[str, Any] | Plan | None"
    seed: int | Sequence[int] | None
    rng: str | None
    eta: float | None
    timesteps: Sequence[float] | None
    sigmas: Sequence[float] | None
    clip_skip: int | None
    guidance_rescale: float | None
    prompt_embeds: Float32 | None
    negative_prompt_embeds: Float32 | None
    pooled_prompt_embeds: Float32 | None
    negative_pooled_prompt_embeds: Float32 | None
    latents: "Float32 | str | os.PathLike[str] | None"
    image: Picture
    mask_image: Picture
    strength: float | None
    original_size: tuple[int, int] | None
    crops_coords_top_left: tuple[int, int] | None
    target_size: tuple[int, int] | None
    negative_original_size: tuple[int, int] | None
    negative_crops_coords_top_left: tuple[int, int] | None
    negative_target_size: tuple[int, int] | None
    vae_tiling: bool
    output_type: str


def _refuse_unknown(options: CallOptions) -> None:
    known = list(CallOptions.__annotations__)
    for name in options:
        if name not in known:
            near = nearest_names(name, known)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
            raise InputError(f"unknown argument {name!r}; {hint}")


def _whole(name: str, given: Any, least: int) -> int:
    if isinstance(given, bool) or not hasattr(given, "__index__") or given < least:
        raise InputError(f"{name}={given!r}: it is a whole number from {least} up")
    return int(given)


def _number(name: str, given: float | None, default: float, least: float, most: float) -> float:
    value = default if given is None else given
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise InputError(f"{name}={given!r}: it is a number from {least} to {most}")
    return float(value)


def _choice(name: str, given: str, choices: Sequence[str]) -> str:
    if given not in choices:
        raise InputError(f"{name}={given!r}: it is one of {', '.join(map(repr, choices))}")
    return given
