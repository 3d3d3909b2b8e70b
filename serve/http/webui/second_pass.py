"""The second pass that `enable_hr` asks for: its fields as options of ours, and the job that draws it.

The device draws one pass a job. Its latents or pictures come here, are enlarged, and go into a second job.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any
from uuid import uuid4

import numpy as np

from latentrt.runtime.errors import InputError, unknown
from latentrt.runtime.latents import enlarges_latents
from latentrt.runtime.request import Call
from latentrt.runtime.request.web_ui_text import UPSCALERS
from latentrt.serve.http.errors import ApiError
from latentrt.serve.messages import Job, Output, Picture
from latentrt.serve.served_model import ServedModel

# What a second pass of its own would have, the field of the first one, and what asks for the same.
_SAME: Mapping[str, tuple[str, Sequence[str]]] = {
    "hr_sampler_name": ("sampler_name", ("Use same sampler",)),
    "hr_scheduler": ("scheduler", ("Use same scheduler", "Automatic")),
    "hr_checkpoint_name": ("", ("Use same checkpoint",)),
    "hr_prompt": ("prompt", ()),
    "hr_negative_prompt": ("negative_prompt", ()),
    "hr_cfg": ("cfg_scale", ()),
    "firstphase_width": ("", ()),
    "firstphase_height": ("", ()),
}
SCALE, STRENGTH = 2.0, 0.75  # the web UI's defaults


def hires_options(own: Mapping[str, Any], steps: int, size: tuple[int, int]) -> dict[str, Any]:
    """The options of a body with `enable_hr`. Raises `InputError`, `ApiError`.

    Args:
        own: the fields of the body.
        steps: of the first pass; the second one makes as many, unless it says otherwise.
        size: width and height of the first pass.
    """
    for name, (first, same) in _SAME.items():
        value = own.get(name)
        if value and value not in same and (not first or value != own.get(first)):
            text = f"{name} is not served: the second pass is drawn like the first one"
            raise ApiError(400, text, "unsupported_value", param=name)
    given = own.get("hr_upscaler") or "Latent"
    if given not in UPSCALERS:
        raise InputError(f"hr_{unknown('upscaler', given, sorted(UPSCALERS))}")
    return {
        "hires_scale": _scale(own, size),
        "hires_strength": own.get("denoising_strength", STRENGTH),
        "hires_steps": own.get("hr_second_pass_steps") or steps,
        "hires_upscaler": UPSCALERS[given],
    }


def _scale(own: Mapping[str, Any], size: tuple[int, int]) -> float:
    """Of both sides: `hr_scale`, or what `hr_resize_x` and `hr_resize_y` say."""
    wanted = own.get("hr_resize_x", 0), own.get("hr_resize_y", 0)
    scales = [side / own_side for side, own_side in zip(wanted, size, strict=True) if side]
    if len(scales) == 2 and abs(scales[0] - scales[1]) > 0.01:
        text = f"hr_resize_x and hr_resize_y: {wanted[0]}x{wanted[1]} has another shape than {size[0]}x{size[1]}"
        raise ApiError(400, text, "unsupported_value", param="hr_resize_x")
    return scales[0] if scales else float(own.get("hr_scale", SCALE))


def first_job(job: Job, call: Call) -> Job:
    """The job of the first pass, which is answered with what the second one begins from."""
    upscaler = call.first.options["hires_upscaler"]
    latents = upscaler is not None and enlarges_latents(upscaler)
    return replace(job, output=Output("latents" if latents else "raw", text=False))


def second_job(job: Job, call: Call, pictures: Sequence[Picture], model: ServedModel, elapsed: float) -> Job:
    """The job of the second pass.

    Args:
        job: as the client asked for it.
        pictures: of `first_job`.
        elapsed: seconds since the first pass was submitted.
    """
    first, facts = call.first, model.bundle.manifest.model
    data = [picture.data for picture in pictures]
    if pictures[0].format == "latents":
        side = facts.vae_scale_factor
        shape = (len(data), facts.latent_channels, first.height // side, first.width // side)
        request = call.second_from(np.frombuffer(b"".join(data), "<f4").reshape(shape).astype(np.float32), _no_pixels)
    else:
        levels = np.frombuffer(b"".join(data), np.uint8).reshape(len(data), first.height, first.width, 3)
        request = call.second_from(np.empty(0, np.float32), lambda _: levels)
    deadline = None if job.deadline is None else max(0.001, job.deadline - elapsed)
    return replace(job, id=uuid4().hex, request=replace(request, first=first), deadline=deadline)


def _no_pixels(_: Any) -> Any:
    raise AssertionError("latents are enlarged without decoding them")
