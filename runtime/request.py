"""What a caller asks for, checked and made explicit: one value for each image, the bundle's defaults filled in.

Knows arguments and their limits; knows nothing of engines.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np

from .bundle import Manifest
from .engine import Float32
from .errors import InputError, nearest_names
from .noise import TorchGenerator
from .prompt import SYNTAXES
from .scheduler import Plan, resolve
from .text_input import TextInput, text_inputs_from_call

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
    latents: (images, C, h, w) float32, unit normal noise to start from, instead of what the seeds give.
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
    latents: Float32 | None
    output_type: str


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """A checked call. `positive`, `negative` and `seeds` have one entry for each image."""

    positive: TextInput
    negative: TextInput
    prompt_syntax: str
    long_prompt: str
    seeds: tuple[int, ...]
    rng: str
    height: int
    width: int
    plan: Plan
    num_inference_steps: int
    scheduler: str
    guidance_scale: float
    guidance_rescale: float
    clip_skip: int
    latents: Float32 | None
    output_type: str

    @property
    def guided(self) -> bool:
        """Whether the negative prompt is computed, too: diffusers' rule."""
        return _is_guided(self.guidance_scale)

    @classmethod
    def from_call(
        cls,
        manifest: Manifest,
        scheduler_config: Mapping[str, Any],
        prompt: str | Sequence[str] | None,
        options: CallOptions,
    ) -> "Request":
        """Check a call against a bundle; raises `InputError` or `SchedulerError` with what is allowed."""
        _refuse_unknown(options)
        model, defaults = manifest.model, manifest.defaults
        scale = _number("guidance_scale", options.get("guidance_scale"), defaults.guidance_scale, 0, 1000)
        syntax = _choice("prompt_syntax", options.get("prompt_syntax") or SYNTAXES[0], SYNTAXES)
        sides = text_inputs_from_call(manifest, prompt, options, syntax=syntax, guided=_is_guided(scale))
        per_prompt = _whole("num_images_per_prompt", options.get("num_images_per_prompt", 1), 1)
        positive, negative = (side.repeated(per_prompt) for side in sides)
        count = len(positive)
        height = _size("height", options.get("height"), defaults.height, model.vae_scale_factor)
        width = _size("width", options.get("width"), defaults.width, model.vae_scale_factor)
        plan, steps, scheduler = _plan(scheduler_config, defaults.num_inference_steps, options)
        latent_shape = (model.latent_channels, height // model.vae_scale_factor, width // model.vae_scale_factor)
        return cls(
            positive=positive,
            negative=negative,
            prompt_syntax=syntax,
            long_prompt=_choice("long_prompt", options.get("long_prompt") or LONG_PROMPTS[0], LONG_PROMPTS),
            seeds=_seeds(options.get("seed"), count),
            rng=_choice("rng", options.get("rng") or RNGS[0], RNGS),
            height=height,
            width=width,
            plan=plan,
            num_inference_steps=steps,
            scheduler=scheduler,
            guidance_scale=scale,
            guidance_rescale=_number("guidance_rescale", options.get("guidance_rescale"), 0.0, 0, 1),
            clip_skip=_clip_skip(options.get("clip_skip"), min(e.hidden_states for e in model.text_encoders)),
            latents=_latents(options.get("latents"), (count, *latent_shape)),
            output_type=_choice("output_type", options.get("output_type", "pil"), OUTPUT_TYPES),
        )


def _refuse_unknown(options: CallOptions) -> None:
    known = list(CallOptions.__annotations__)
    for name in options:
        if name not in known:
            near = nearest_names(name, known)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
            raise InputError(f"unknown argument {name!r}; {hint}")


def _is_guided(guidance_scale: float) -> bool:
    return guidance_scale > 1


def _plan(config: Mapping[str, Any], default_steps: int, options: CallOptions) -> tuple[Plan, int, str]:
    """The plan, its number of steps, and the scheduler's name for people."""
    scheduler, steps = options.get("scheduler"), options.get("num_inference_steps")
    custom = {name: options.get(name) for name in ("eta", "timesteps", "sigmas")}
    if isinstance(scheduler, Plan):
        if steps is not None or any(value is not None for value in custom.values()):
            raise InputError("a compiled plan has its steps: leave out num_inference_steps, eta, timesteps and sigmas")
        return scheduler, len(scheduler), "custom plan"
    if steps is None and custom["timesteps"] is None and custom["sigmas"] is None:
        steps = default_steps
    resolved = resolve(scheduler, config)
    name = scheduler if isinstance(scheduler, str) else str(resolved.get("_class_name"))
    plan = Plan.from_config(resolved, steps, **custom)  # type: ignore[arg-type]
    return plan, len(plan) if steps is None else steps, name


def _seeds(seed: int | Sequence[int] | None, count: int) -> tuple[int, ...]:
    if seed is None:
        seed = int.from_bytes(os.urandom(4), "little")
    if isinstance(seed, Sequence) and not isinstance(seed, str):
        if len(seed) != count:
            raise InputError(f"{len(seed)} seeds for {count} images: pass one, or one for each")
        seeds = tuple(seed)
    else:
        seeds = tuple(_whole("seed", seed, -(2**63)) + i for i in range(count))
    for value in seeds:
        TorchGenerator(value)  # refuses what is no seed
    return seeds


def _size(name: str, given: int | None, default: int, factor: int) -> int:
    value = _whole(name, default if given is None else given, factor)
    if value % factor:
        below = value // factor * factor
        raise InputError(
            f"{name}={value}: it must be a multiple of {factor}; the nearest are {below} and {below + factor}"
        )
    return value


def _whole(name: str, given: Any, least: int) -> int:
    if isinstance(given, bool) or not hasattr(given, "__index__") or given < least:
        raise InputError(f"{name}={given!r}: it is a whole number from {least} up")
    return int(given)


def _number(name: str, given: float | None, default: float, least: float, most: float) -> float:
    value = default if given is None else given
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise InputError(f"{name}={given!r}: it is a number from {least} to {most}")
    return float(value)


def _clip_skip(given: int | None, layers: int) -> int:
    value = _whole("clip_skip", given or 0, 0)
    if value >= layers:
        raise InputError(f"clip_skip={value}: this text encoder has {layers} layers, so at most {layers - 1}")
    return value


def _choice(name: str, given: str, choices: Sequence[str]) -> str:
    if given not in choices:
        raise InputError(f"{name}={given!r}: it is one of {', '.join(map(repr, choices))}")
    return given


def _latents(given: Float32 | None, shape: tuple[int, ...]) -> Float32 | None:
    if given is None:
        return None
    array = np.asarray(given, np.float32)
    if array.shape != shape:
        raise InputError(f"latents have the shape {array.shape}; for these images it should be {shape}")
    return array
