"""The passes of a call: one, or a second one by a refiner, or by the same model on the enlarged picture ("hires fix").

Knows manifests and options. Draws nothing: what the first pass has drawn is handed to `Call.second_from`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from latentrt.runtime.arrays import Float32
from latentrt.runtime.bundle import Manifest, takes, takes_score
from latentrt.runtime.errors import InputError
from latentrt.runtime.latents import ImageInput, enlarged_latents, enlarged_pictures, enlarges_latents
from latentrt.runtime.scheduler import Plan
from latentrt.runtime.scheduler.naming import resolve_for_model

from .options import OPTIONS, CallOptions, checked_value
from .request import OF_SECOND_PASS, OUT_OF_MEMORY, Request
from .time_inputs import SCORES

REFINER_START = 0.8  # diffusers' documentation of SDXL's refiner
_WHOLE = 1e-4
_TARGETS = ("target_size", "negative_target_size")
_SECOND_TEXTS = ("prompt_2", "negative_prompt_2")


@dataclass(frozen=True, slots=True, eq=False)
class ModelFacts:
    """What the calls of one model are checked against."""

    manifest: Manifest
    scheduler_config: Mapping[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """A checked call.

    Attributes:
        first: the only pass, or the first of two. Its options are all that the call was given: the text in pictures
            is made from it.
        second: None for one pass. Its image holds zeros until the first pass has been drawn.
        refines: whether the second pass is the refiner's.
    """

    first: Request
    second: Request | None = None
    refines: bool = False

    @property
    def unet_calls(self) -> int:
        """Of all passes."""
        return len(self.first.plan) + (0 if self.second is None else len(self.second.plan))

    def second_from(self, latents: Float32, decode: Callable[[Float32], NDArray[np.uint8]]) -> Request:
        """The second pass, for what the first one has drawn.

        Args:
            latents: (images, C, h, w) after the first pass.
            decode: latents to pictures (images, H, W, 3).
        """
        assert self.second is not None
        assert self.second.image is not None
        assert self.second.image.latents is not None
        if self.refines:
            return replace(self.second, image=replace(self.second.image, latents=latents))
        upscaler = self.first.options["hires_upscaler"]
        assert upscaler is not None
        if enlarges_latents(upscaler):
            height, width = self.second.image.latents.shape[2:]
            enlarged = enlarged_latents(latents, upscaler, height, width)
            return replace(self.second, image=replace(self.second.image, latents=enlarged))
        pixels = enlarged_pictures(decode(latents), upscaler, self.second.height, self.second.width)
        return replace(self.second, image=replace(self.second.image, latents=None, pixels=pixels))


def checked_call(
    base: ModelFacts, prompt: str | Sequence[str] | None, options: CallOptions, *, refiner: ModelFacts | None = None
) -> Call:
    """Check all passes of a call; raises `InputError` or `SchedulerError` with what is allowed.

    `refiner`: a model that goes on from `refiner_start`; None where there is none.
    """
    try:
        return _checked_call(base, prompt, options, refiner)
    except MemoryError:
        raise InputError(OUT_OF_MEMORY) from None


def _checked_call(
    base: ModelFacts, prompt: str | Sequence[str] | None, options: CallOptions, refiner: ModelFacts | None
) -> Call:
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    asked = {
        name: checked_value(name, OPTIONS[name].kind, given.pop(name), base.manifest)
        for name in OF_SECOND_PASS
        if name in given
    }
    start = asked.pop("refiner_start", None)
    if refiner is None and start is not None:
        raise InputError(
            f"refiner_start={start:g}: there is no refiner; load one with Pipeline.load(refiner=…) or --refiner, or "
            "leave it out"
        )
    if asked and "hires_scale" not in asked:
        raise InputError(f"{', '.join(asked)}: of the second pass, which hires_scale asks for: pass it, too")
    if refiner is not None and asked and start != 1:
        raise InputError("hires_scale does not go with the refiner: pass refiner_start=1 to leave the refiner out")
    if refiner is not None and start != 1:
        return _refined(base, refiner, prompt, given, REFINER_START if start is None else start)
    if asked:
        return _enlarged(base, prompt, given, asked)
    return Call(_request(base, prompt, given))


def _request(
    model: ModelFacts, prompt: Any, options: Mapping[str, Any], *, begin_from: ImageInput | None = None
) -> Request:
    given = cast(CallOptions, options)
    return Request.from_call(model.manifest, model.scheduler_config, prompt, given, begin_from=begin_from)


def _refined(base: ModelFacts, refiner: ModelFacts, prompt: Any, given: Mapping[str, Any], start: float) -> Call:
    """Base with `denoising_end`, refiner with `denoising_start`: diffusers' ensemble of expert denoisers."""
    embeds = [name for name in given if name.endswith("embeds")]
    _refuse(
        "a refiner (refiner_start=1 leaves it out)", given, ["mask_image", "denoising_start", "denoising_end", *embeds]
    )
    _check_latents(base.manifest, refiner.manifest)
    scores = {name: given[name] for name in SCORES if name in given}
    own = {name: value for name, value in given.items() if name not in SCORES}
    first = _request(base, prompt, {**own, "denoising_end": start})
    left_out = {"latents", "image", "strength"}
    left_out |= {*_TARGETS} if takes_score(refiner.manifest.graphs["time"]) else set()
    left_out |= {*_SECOND_TEXTS} if len(refiner.manifest.model.text_encoders) == 1 else set()
    options = {name: value for name, value in given.items() if name not in left_out}
    options |= {"denoising_start": start, "seed": first.seeds, "height": first.height, "width": first.width}
    second = _request(refiner, prompt, options, begin_from=_zeros(refiner.manifest, first, first.height, first.width))
    _check_scale(first.plan, second.plan)
    recorded: Any = {**first.options, **scores, "denoising_end": None, "refiner_start": start}
    return Call(replace(first, options=recorded), second, refines=True)


def _enlarged(base: ModelFacts, prompt: Any, given: Mapping[str, Any], asked: Mapping[str, Any]) -> Call:
    """A call, and image-to-image from its enlarged result with the same seeds, as web UIs draw it."""
    manifest = base.manifest
    _refuse("hires_scale", given, ["mask_image", "denoising_end"])
    if takes(manifest.graphs["denoise"], "extra"):
        raise InputError("hires_scale: a model that inpaints does not draw the second pass; leave it out")
    first = _request(base, prompt, given)
    factor, scale = manifest.model.vae_scale_factor, asked["hires_scale"]
    height, width = (int(side * scale / factor + 1e-6) * factor for side in (first.height, first.width))
    strength = asked.get("hires_strength", manifest.defaults.strength)
    left_out = {"latents", "image", "denoising_start"}
    options: dict[str, Any] = {"num_inference_steps": first.num_inference_steps}
    if (steps := asked.get("hires_steps")) is not None:
        options["num_inference_steps"] = steps if _makes_all(base, given, first) else _steps_for(steps, strength)
        left_out |= {"timesteps", "sigmas"}
    options |= {name: value for name, value in given.items() if name not in {*left_out, *options}}
    options |= {"height": height, "width": width, "seed": first.seeds, "strength": strength}
    second = _request(base, prompt, options, begin_from=_zeros(manifest, first, height, width))
    recorded: Any = {**first.options, "hires_upscaler": "latent", **asked, "hires_strength": strength}
    return Call(replace(first, options=recorded), second)


def _makes_all(base: ModelFacts, given: Mapping[str, Any], first: Request) -> bool:
    """Whether strength leaves out no steps: see `_lcm_timesteps` of request.py."""
    config = resolve_for_model(given.get("scheduler"), base.scheduler_config, text_encoders=1)
    return first.distilled and config["_class_name"] == "LCMScheduler"


def _refuse(what: str, given: Mapping[str, Any], names: Sequence[str]) -> None:
    if refused := [name for name in names if name in given]:
        raise InputError(f"{', '.join(refused)}: does not go with {what}; leave out one of them")
    if isinstance(given.get("scheduler"), Plan):
        raise InputError(f"a compiled plan is of one pass, and does not go with {what}: pass a scheduler's name")


def _zeros(manifest: Manifest, first: Request, height: int, width: int) -> ImageInput:
    """What a second pass begins from until the first one has been drawn."""
    count, factor = len(first.seeds), manifest.model.vae_scale_factor
    latents = np.zeros((count, manifest.model.latent_channels, height // factor, width // factor), np.float32)
    return ImageInput(None, latents, None, np.arange(count))


def _steps_for(made: int, strength: float) -> int:
    """The number of inference steps of which `strength` leaves `made`."""
    steps = max(made, math.ceil(made / strength - 1e-9))
    return steps if int(steps * strength) >= made else steps + 1


def _check_latents(base: Manifest, refiner: Manifest) -> None:
    for name in ("latent_channels", "vae_scale_factor", "scaling_factor"):
        ours, theirs = getattr(base.model, name), getattr(refiner.model, name)
        if ours != theirs:
            raise InputError(f"the refiner has {name} {theirs:g}, and the base {ours:g}: choose another refiner")


def _check_scale(first: Plan, second: Plan) -> None:
    """Raise `InputError` where one scheduler adds noise to whole latents, and the other one makes room for it."""
    left = first.noise_levels[-1, 0]
    expected = second.noise_levels[0, 0] / (second.initial[0, 1] or 1)
    if (abs(left - 1) < _WHOLE) != (abs(expected - 1) < _WHOLE):
        raise InputError(
            f"the base leaves its latents at {left:.3g} of their size, and the refiner's scheduler expects "
            f"{expected:.3g}: pass a scheduler for both"
        )
