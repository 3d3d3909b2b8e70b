"""What a caller asks for, checked and made explicit: one value for each image, the bundle's defaults filled in.

Knows arguments and their limits; knows nothing of engines.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from latentrt.runtime.arrays import Float32
from latentrt.runtime.bundle.manifest import Defaults, Manifest
from latentrt.runtime.bundle.sizes import takes
from latentrt.runtime.errors import InputError
from latentrt.runtime.latents.given_images import GivenImages, ImageInput, is_npy, read_npy
from latentrt.runtime.latents.noise import TorchGenerator
from latentrt.runtime.scheduler.plan import Plan, resolve
from latentrt.runtime.text.given_texts import TextInput, text_inputs_from_call
from latentrt.runtime.text.prompt import SYNTAXES

from .options import LONG_PROMPTS, OUTPUT_TYPES, RNGS, CallOptions, _choice, _number, _refuse_unknown, _whole
from .time_inputs import time_ids_from_call


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
    image: ImageInput | None
    strength: float | None
    time_ids: Float32
    vae_tiling: bool
    distilled: bool
    output_type: str

    @property
    def guided(self) -> bool:
        """Whether the negative prompt is computed, too: diffusers' rule."""
        return _is_guided(self.guidance_scale, distilled=self.distilled)

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
        distilled = takes(manifest.graphs["time"], "guidance_embedding")
        scale = _number("guidance_scale", options.get("guidance_scale"), defaults.guidance_scale, 0, 1000)
        guided = _is_guided(scale, distilled=distilled)
        syntax = _choice("prompt_syntax", options.get("prompt_syntax") or SYNTAXES[0], SYNTAXES)
        sides = text_inputs_from_call(manifest, prompt, options, syntax=syntax, guided=guided)
        per_prompt = _whole("num_images_per_prompt", options.get("num_images_per_prompt", 1), 1)
        prompts = len(sides[0])
        positive, negative = (side.repeated(per_prompt) for side in sides)
        count = len(positive)
        given = GivenImages(options.get("image"), options.get("mask_image"), model.latent_channels)
        own = given.size(model.vae_scale_factor) or (defaults.height, defaults.width)
        height = _size("height", options.get("height"), own[0], model.vae_scale_factor)
        width = _size("width", options.get("width"), own[1], model.vae_scale_factor)
        image = given.fitted(height, width, factor=model.vae_scale_factor, prompts=prompts, per_prompt=per_prompt)
        _check_task(manifest, image)
        strength = _strength(options.get("strength"), defaults, image)
        masked = image is not None and image.mask is not None
        plan, steps, scheduler = _plan(
            scheduler_config,
            defaults.num_inference_steps,
            options,
            # As diffusers' inpainting pipelines: at full strength nothing of the picture is left to begin from.
            strength=None if masked and strength == 1 else strength,
            all_steps=distilled and not masked,
        )
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
            image=image,
            strength=strength,
            time_ids=time_ids_from_call(options, manifest.graphs["time"], height, width),
            vae_tiling=bool(options.get("vae_tiling", False)),
            distilled=distilled,
            output_type=_choice("output_type", options.get("output_type", "pil"), OUTPUT_TYPES),
        )


def _is_guided(guidance_scale: float, *, distilled: bool) -> bool:
    return guidance_scale > 1 and not distilled


def _check_task(manifest: Manifest, image: ImageInput | None) -> None:
    inpaints = takes(manifest.graphs["denoise"], "extra")
    if inpaints and (image is None or image.mask is None):
        raise InputError("this model inpaints: pass image and mask_image")


def _strength(given: float | None, defaults: Defaults, image: ImageInput | None) -> float | None:
    if image is None:
        if given is not None:
            raise InputError(f"strength={given!r} is how much of an image is drawn anew: pass image, or leave it out")
        return None
    default = defaults.strength if image.mask is None else defaults.inpaint_strength
    strength = _number("strength", given, default, 0, 1)
    if strength == 0:
        raise InputError("strength=0 would leave the image as it is: pass more, up to 1")
    return strength


def _plan(
    config: Mapping[str, Any], default_steps: int, options: CallOptions, *, strength: float | None, all_steps: bool
) -> tuple[Plan, int, str]:
    """The plan, its number of steps, and the scheduler's name for people."""
    scheduler, steps = options.get("scheduler"), options.get("num_inference_steps")
    custom = {name: options.get(name) for name in ("eta", "timesteps", "sigmas")}
    if isinstance(scheduler, Plan):
        if steps is not None or any(v is not None for v in (*custom.values(), options.get("strength"))):
            raise InputError(
                "a compiled plan has its steps: leave out num_inference_steps, eta, timesteps, sigmas and strength"
            )
        return scheduler, len(scheduler), "custom plan"
    if steps is None and custom["timesteps"] is None and custom["sigmas"] is None:
        steps = default_steps
    resolved = resolve(scheduler, config)
    name = scheduler if isinstance(scheduler, str) else str(resolved.get("_class_name"))
    if all_steps and strength is not None and steps is not None and resolved["_class_name"] == "LCMScheduler":
        custom["timesteps"] = _lcm_timesteps(resolved, steps, strength)
        plan = Plan.from_config(resolved, None, strength=1.0, **custom)  # type: ignore[arg-type]
    else:
        plan = Plan.from_config(resolved, steps, strength=strength, **custom)  # type: ignore[arg-type]
    return plan, len(plan) if steps is None else steps, name


def _lcm_timesteps(config: Mapping[str, Any], steps: int, strength: float) -> list[float]:
    """`steps` steps within the part that strength leaves, as diffusers' image-to-image pipeline of distilled models
    takes them, where other pipelines leave out steps."""
    distilled_at, train = config.get("original_inference_steps", 50), config.get("num_train_timesteps", 1000)
    left = [i * (train // distilled_at) - 1 for i in range(int(distilled_at * strength), 0, -1)]
    if steps > len(left):
        raise InputError(f"num_inference_steps={steps}: at strength={strength:g} there are {len(left)} at most")
    return [float(left[int(i)]) for i in np.linspace(0, len(left), steps, endpoint=False)]


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


def _clip_skip(given: int | None, layers: int) -> int:
    value = _whole("clip_skip", given or 0, 0)
    if value >= layers:
        raise InputError(f"clip_skip={value}: this text encoder has {layers} layers, so at most {layers - 1}")
    return value


def _latents(given: Any, shape: tuple[int, ...]) -> Float32 | None:
    if given is None:
        return None
    array = np.asarray(read_npy(given) if is_npy(given) else given, np.float32)
    if array.shape != shape:
        raise InputError(f"latents have the shape {array.shape}; for these images it should be {shape}")
    return array
