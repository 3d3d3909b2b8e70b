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
from .scheduler import Plan, resolve

OUTPUT_TYPES = ("pil", "np", "latent")
RNGS = ("cpu", "cuda")


class CallOptions(TypedDict, total=False):
    """Keyword arguments of `Pipeline.__call__` and `Pipeline.stream`, named as in diffusers. None is the default.

    negative_prompt: what to move away from; one for all prompts or one for each. Used with guidance only.
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
    latents: (images, C, h, w) float32, unit normal noise to start from, instead of what the seeds give.
    output_type: "pil" (default); "np", (images, H, W, 3) uint8; "latent", pictures are not decoded.
    """

    negative_prompt: str | Sequence[str] | None
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
    latents: Float32 | None
    output_type: str


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """A checked call. `prompts`, `negatives` and `seeds` have one entry for each image."""

    prompts: tuple[str, ...]
    negatives: tuple[str, ...]
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
    prompt_embeds: Float32 | None
    negative_prompt_embeds: Float32 | None
    latents: Float32 | None
    output_type: str

    @property
    def guided(self) -> bool:
        """Whether the negative prompt is computed, too: diffusers' rule."""
        return self.guidance_scale > 1

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
        prompt_embeds = _embeds("prompt_embeds", options.get("prompt_embeds"), manifest)
        prompts = _prompts(prompt, prompt_embeds)
        negatives = _negatives(options.get("negative_prompt"), len(prompts))
        per_prompt = _whole("num_images_per_prompt", options.get("num_images_per_prompt", 1), 1)
        count = len(prompts) * per_prompt
        height = _size("height", options.get("height"), defaults.height, model.vae_scale_factor)
        width = _size("width", options.get("width"), defaults.width, model.vae_scale_factor)
        plan, steps, scheduler = _plan(scheduler_config, defaults.num_inference_steps, options)
        guidance_scale = options.get("guidance_scale")
        latent_shape = (model.latent_channels, height // model.vae_scale_factor, width // model.vae_scale_factor)
        negative_embeds = _embeds("negative_prompt_embeds", options.get("negative_prompt_embeds"), manifest)
        if negative_embeds is not None and (prompt_embeds is None or prompt_embeds.shape != negative_embeds.shape):
            raise InputError("negative_prompt_embeds must come with prompt_embeds of the same shape")
        return cls(
            prompts=tuple(p for p in prompts for _ in range(per_prompt)),
            negatives=tuple(n for n in negatives for _ in range(per_prompt)),
            seeds=_seeds(options.get("seed"), count),
            rng=_choice("rng", options.get("rng") or RNGS[0], RNGS),
            height=height,
            width=width,
            plan=plan,
            num_inference_steps=steps,
            scheduler=scheduler,
            guidance_scale=_number("guidance_scale", guidance_scale, defaults.guidance_scale, 0, 1000),
            guidance_rescale=_number("guidance_rescale", options.get("guidance_rescale"), 0.0, 0, 1),
            clip_skip=_clip_skip(options.get("clip_skip"), model.text_encoders[0].hidden_states),
            prompt_embeds=None if prompt_embeds is None else np.repeat(prompt_embeds, per_prompt, 0),
            negative_prompt_embeds=None if negative_embeds is None else np.repeat(negative_embeds, per_prompt, 0),
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


def _prompts(prompt: str | Sequence[str] | None, embeds: Float32 | None) -> list[str]:
    if (prompt is None) == (embeds is None):
        raise InputError("pass either a prompt or prompt_embeds (an empty prompt, '', is allowed)")
    if embeds is not None:
        return [""] * len(embeds)
    single = isinstance(prompt, str) or not isinstance(prompt, Sequence)
    prompts: list[Any] = [prompt] if single else list(prompt or ())
    if not prompts or not all(isinstance(p, str) for p in prompts):
        raise InputError(f"prompt={prompt!r}: it is a text, or a list of at least one")
    return prompts


def _negatives(negative: str | Sequence[str] | None, count: int) -> list[str]:
    negatives = [negative or ""] * count if negative is None or isinstance(negative, str) else list(negative)
    if len(negatives) != count:
        raise InputError(f"{len(negatives)} negative prompts for {count} prompts: pass one, or one for each")
    return negatives


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


def _embeds(name: str, given: Float32 | None, manifest: Manifest) -> Float32 | None:
    if given is None:
        return None
    array = np.asarray(given, np.float32)
    width = manifest.model.text_encoders[0].hidden_size
    if array.ndim != 3 or array.shape[2] != width or not array.size:
        raise InputError(f"{name} has the shape {array.shape}; it should be (prompts, tokens, {width})")
    return array


def _latents(given: Float32 | None, shape: tuple[int, ...]) -> Float32 | None:
    if given is None:
        return None
    array = np.asarray(given, np.float32)
    if array.shape != shape:
        raise InputError(f"latents have the shape {array.shape}; for these images it should be {shape}")
    return array
