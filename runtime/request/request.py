"""A call, checked before anything is computed: texts, images, plan, seeds, sizes.

Knows the bundle's manifest and the table of options. Knows nothing of engines.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from latentrt.runtime.arrays import Float32
from latentrt.runtime.bundle import ControlManifest, Defaults, Manifest, takes, takes_score
from latentrt.runtime.errors import InputError
from latentrt.runtime.latents import GivenImages, ImageInput, TorchGenerator, is_npy, read_npy
from latentrt.runtime.limits import MAX_IMAGES, MAX_NOISE, MAX_PIXELS, MAX_TOKENS, raised_by
from latentrt.runtime.scheduler import Plan
from latentrt.runtime.scheduler.config import checked_options
from latentrt.runtime.scheduler.naming import resolve_for_model
from latentrt.runtime.scheduler.starts import timesteps_within
from latentrt.runtime.text import TextInput, text_inputs_from_call

from . import kinds
from .adapter_options import FeaturesUse, ImagePromptUse, features_of_call, image_prompt_of_call
from .control_options import NetUse, nets_of_call, size_of_hints
from .extent import Extent
from .guidance import PLUS_PLUS, check_interval, check_plus_plus, guidance_weights, is_plus_plus
from .options import CallOptions, checked, checked_value
from .time_inputs import time_ids_from_call

# What `passes.py` takes out of a call before its passes are checked one by one.
OF_SECOND_PASS = ("refiner_start", "hires_scale", "hires_strength", "hires_steps", "hires_upscaler")
OUT_OF_MEMORY = "this call needs more memory than there is: lower the number of images, their size or the texts' length"


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """A checked call. `positive`, `negative` and `seeds` have one entry for each image.

    Attributes:
        options: all options in their normal form, with defaults; what follows is computed from them.
        num_inference_steps: None with custom steps or a compiled plan.
        scheduler: its name; None for a compiled plan.
        noise: (images, C, h, w) to start from instead of the seeds'; None for the seeds'.
        time_ids: see `time_ids_from_call`.
        nets, features, image_prompt: the ControlNets, T2I-Adapter and IP-Adapter that steer it.
        distilled: whether the model takes the guidance scale as an input.
        first: of a second pass that is drawn as a call of its own, the call whose options the text in pictures tells.
    """

    options: CallOptions
    positive: TextInput
    negative: TextInput
    seeds: tuple[int, ...]
    height: int
    width: int
    plan: Plan
    num_inference_steps: int | None
    scheduler: str | None
    strength: float | None
    noise: Float32 | None
    image: ImageInput | None
    time_ids: Float32
    distilled: bool
    nets: tuple[NetUse, ...] = ()
    features: FeaturesUse | None = None
    image_prompt: ImagePromptUse | None = None
    first: "Request | None" = None

    @property
    def guidance_scale(self) -> float:
        """Strength of the prompt."""
        scale = self.options["guidance_scale"]
        assert scale is not None
        return scale

    @property
    def guided(self) -> bool:
        """Whether the negative prompt is computed too: diffusers' rule."""
        return _is_guided(self.guidance_scale, is_plus_plus(self.plan), distilled=self.distilled)

    @property
    def guidance(self) -> Float32:
        """(calls, groups) float32, weights of the groups' predictions."""
        if not self.guided:
            return np.ones((len(self.plan), 1), np.float32)
        start, end = self.options["guidance_start"], self.options["guidance_end"]
        assert start is not None
        assert end is not None
        return guidance_weights(self.guidance_scale, self.plan, start=start, end=end)

    @classmethod
    def from_call(
        cls,
        manifest: Manifest,
        scheduler_config: Mapping[str, Any],
        prompt: str | Sequence[str] | None,
        options: CallOptions,
        controls: Mapping[str, ControlManifest] | None = None,
        *,
        begin_from: ImageInput | None = None,
    ) -> "Request":
        """Check a call of one pass against a bundle; raises `InputError` or `SchedulerError` with what is allowed.

        Args:
            controls: manifests of the control bundles that were loaded beside it, by name.
            begin_from: what an earlier pass has drawn, in place of the option `image`.
        """
        try:
            return cls._from_call(manifest, scheduler_config, prompt, options, controls or {}, begin_from)
        except MemoryError:
            raise InputError(OUT_OF_MEMORY) from None

    @classmethod
    def _from_call(
        cls,
        manifest: Manifest,
        scheduler_config: Mapping[str, Any],
        prompt: str | Sequence[str] | None,
        options: CallOptions,
        controls: Mapping[str, ControlManifest],
        begin_from: ImageInput | None,
    ) -> "Request":
        values: Any = checked(options, manifest)
        if second := [name for name in OF_SECOND_PASS if values[name] is not None]:
            raise InputError(f"{', '.join(second)}: this draws in one pass; leave it out")
        if prompt is not None:
            prompt = checked_value("prompt", kinds.text(), prompt, manifest)
        distilled = takes(manifest.graphs["time"], "guidance_embedding")
        chosen = _scheduler(values["scheduler"], scheduler_config, manifest)
        if plus_plus := is_plus_plus(chosen):
            check_plus_plus(values, distilled=distilled)
            if options.get("guidance_scale") is None:
                values["guidance_scale"] /= PLUS_PLUS
        guided = _is_guided(values["guidance_scale"], plus_plus, distilled=distilled)
        sides = text_inputs_from_call(manifest, prompt, values, syntax=values["prompt_syntax"], guided=guided)
        prompts, per_prompt = len(sides[0]), values["num_images_per_prompt"]
        if prompts * per_prompt > MAX_IMAGES:
            raise InputError(
                f"{prompts} prompts of {per_prompt} images each: expected at most {MAX_IMAGES} images; "
                + raised_by("MAX_IMAGES")
            )
        _check_embeddings(sides, prompts * per_prompt, guided=guided)
        positive, negative = (side.repeated(per_prompt) for side in sides)
        height, width, image = _images(manifest, values, prompts, controls, begin_from)
        strength = _strength(values, manifest.defaults, image)
        plan, steps, scheduler = _plan(chosen, manifest.defaults, values, strength, image, distilled)
        check_interval(values["guidance_start"], values["guidance_end"])
        _check_noise(plan, len(positive) * height * width)
        extent = Extent((height, width), prompts, per_prompt, calls=len(plan), groups=2 if guided else 1)
        factor = manifest.model.vae_scale_factor
        shape = (len(positive), manifest.model.latent_channels, height // factor, width // factor)
        return cls(
            options=values,
            positive=positive,
            negative=negative,
            seeds=_seeds(values["seed"], len(positive), values["noise_seed_delta"]),
            height=height,
            width=width,
            plan=plan,
            num_inference_steps=steps,
            scheduler=scheduler,
            strength=strength,
            noise=_noise(values["latents"], shape),
            image=image,
            time_ids=time_ids_from_call(values, manifest.graphs["time"], height, width),
            distilled=distilled,
            nets=nets_of_call(values, controls, extent),
            features=features_of_call(values, controls, extent),
            image_prompt=image_prompt_of_call(values, controls, extent),
        )


def _scheduler(
    given: str | Mapping[str, Any] | Plan | None, config: Mapping[str, Any], manifest: Manifest
) -> dict[str, Any] | Plan:
    """The resolved config, or the plan."""
    if isinstance(given, Plan):
        return given
    return resolve_for_model(given, config, text_encoders=len(manifest.model.text_encoders))


def _is_guided(guidance_scale: float, plus_plus: bool, *, distilled: bool) -> bool:
    return guidance_scale > (0 if plus_plus else 1) and not distilled


def _images(
    manifest: Manifest,
    values: Mapping[str, Any],
    prompts: int,
    controls: Mapping[str, ControlManifest],
    begin_from: ImageInput | None,
) -> tuple[int, int, ImageInput | None]:
    """Height, width, and the given pictures at that size."""
    model, defaults = manifest.model, manifest.defaults
    with kinds.reading("image", values["image"]):
        given = GivenImages(values["image"], values["mask_image"], model.latent_channels)
    own = given.size(model.vae_scale_factor) or size_of_hints(values, controls) or (defaults.height, defaults.width)
    height, width = values["height"] or own[0], values["width"] or own[1]
    per_prompt: int = values["num_images_per_prompt"]
    if (count := prompts * per_prompt) * height * width > MAX_PIXELS:
        raise InputError(
            f"{count} images of {width}x{height} pixels: expected at most {MAX_PIXELS:,} pixels in one call; "
            + raised_by("MAX_PIXELS")
        )
    image = begin_from or given.fitted(
        height, width, factor=model.vae_scale_factor, prompts=prompts, per_prompt=per_prompt
    )
    if takes(manifest.graphs["denoise"], "extra") and (image is None or image.mask is None):
        raise InputError("this model inpaints: pass image and mask_image")
    if takes_score(manifest.graphs["time"]) and image is None:
        raise InputError("this model refines pictures, and was not trained to begin from noise: pass image")
    return height, width, image


def _strength(values: Mapping[str, Any], defaults: Defaults, image: ImageInput | None) -> float | None:
    given: float | None = values["strength"]
    start: float | None = values["denoising_start"]
    if image is None:
        if given is not None:
            raise InputError(f"strength={given!r} is how much of an image is drawn anew: pass image, or leave it out")
        if start is not None:
            raise InputError(f"denoising_start={start!r} goes on from latents: pass them as image, or leave it out")
        return None
    if start is not None:
        if given is not None or image.latents is None:
            raise InputError(f"denoising_start={start!r} goes on from latents: pass them as image, without strength")
        return None
    if given is not None:
        return given
    return defaults.strength if image.mask is None else defaults.inpaint_strength


def _plan(
    chosen: Mapping[str, Any] | Plan,
    defaults: Defaults,
    values: Mapping[str, Any],
    strength: float | None,
    image: ImageInput | None,
    distilled: bool,
) -> tuple[Plan, int | None, str | None]:
    """The plan, its number of steps where they are not custom, and the scheduler's name."""
    scheduler, steps = values["scheduler"], values["num_inference_steps"]
    custom = {name: values[name] for name in ("eta", "timesteps", "sigmas", "denoising_start", "denoising_end")}
    if isinstance(chosen, Plan):
        if steps is not None or any(v is not None for v in (*custom.values(), values["strength"])):
            raise InputError(
                f"a compiled plan has its steps: leave out num_inference_steps, strength, {', '.join(custom)}"
            )
        return chosen, None, None
    if steps is None and custom["timesteps"] is None and custom["sigmas"] is None:
        steps = defaults.num_inference_steps
    name = scheduler if isinstance(scheduler, str) else str(chosen.get("_class_name"))
    masked = image is not None and image.mask is not None
    if masked and strength == 1:
        strength = None  # as diffusers' inpainting pipelines: nothing of the picture is left to begin from
    shortened = steps is not None and strength is not None and chosen.get("_class_name") == "LCMScheduler"
    if distilled and not masked and shortened:
        custom["timesteps"] = _lcm_timesteps(chosen, steps, strength or 1.0)
        return Plan.from_config(chosen, None, strength=1.0, **custom), steps, name
    return Plan.from_config(chosen, steps, strength=strength, **custom), steps, name


def _lcm_timesteps(config: Mapping[str, Any], steps: int, strength: float) -> list[float]:
    """`steps` timesteps within the part that strength leaves, as in diffusers' image-to-image pipeline of distilled
    models; other pipelines leave out steps."""
    options = checked_options(config)
    left = int(options["original_inference_steps"] * strength)
    if steps > left:
        raise InputError(f"num_inference_steps={steps}: expected at most {left} at strength={strength:g}")
    return timesteps_within(options, steps, left)


def _seeds(seed: int | Sequence[int] | None, count: int, delta: int) -> tuple[int, ...]:
    if seed is None:
        seed = int.from_bytes(os.urandom(4), "little")
    if isinstance(seed, int):
        seed = range(seed, seed + count)
    elif len(seed) != count:
        raise InputError(f"{len(seed)} seeds for {count} images: pass one, or one for each")
    for bound in (min(seed), max(seed)):  # checks the range
        TorchGenerator(bound)
        TorchGenerator(bound + delta)
    return tuple(seed)


def _noise(given: Any, shape: tuple[int, ...]) -> Float32 | None:
    if given is None:
        return None
    array = read_npy(given) if is_npy(given) else given
    if array.shape != shape:
        raise InputError(f"latents have the shape {array.shape}; expected {shape} for these images")
    result: Float32 = kinds.float_array("latents", array)
    return result


def _check_embeddings(sides: Sequence[TextInput], images: int, *, guided: bool) -> None:
    """Each image gets its own copy. Those of texts are checked when they are tokenized."""
    tokens = sum(side.embeds.shape[1] for side in (sides if guided else sides[:1]) if side.embeds is not None)
    if images * tokens > MAX_TOKENS:
        raise InputError(
            f"embeddings of {tokens:,} tokens for each of {images} images: expected at most {MAX_TOKENS:,} tokens in "
            f"one call; {raised_by('MAX_TOKENS')}"
        )


def _check_noise(plan: Plan, pixels: int) -> None:
    draws = int(plan.draws.sum())
    if (1 + draws) * pixels > MAX_NOISE:
        raise InputError(
            f"this scheduler draws noise {draws:,} times for {pixels:,} pixels: lower num_inference_steps or the size, "
            f"or choose a scheduler without noise; {raised_by('MAX_PIXELS')}"
        )
