"""OpenAI's fields of image requests, as fields of ours. Knows no routes.

Where a field means nothing here it is ignored if the picture is still what was asked for, and refused if it is not.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from latentrt.runtime.errors import InputError
from latentrt.serve.messages import Previews
from latentrt.serve.served_model import ServedModel

from .bodies import call_properties
from .errors import ApiError

# Steps of each quality, as parts of the bundle's default.
QUALITIES = {"low": 0.5, "medium": 1.0, "standard": 1.0, "auto": 1.0, "high": 1.5, "hd": 1.5, "xhigh": 2.0, "max": 2.0}
# What answers call those that OpenAI's answers do not have.
_ANSWERED = {"auto": "medium", "standard": "medium", "hd": "high"}
IGNORED = ("style", "moderation", "user", "safety_identifier", "input_fidelity")
MAX_PARTIAL = 3


def request_properties() -> dict[str, Any]:
    """JSON schema of the fields that OpenAI defines."""
    ignored = {name: {"type": ["string", "null"], "description": "accepted and ignored"} for name in IGNORED}
    return {
        "prompt": {"type": "string", "description": "what to draw"},
        "n": {"type": "integer", "minimum": 1, "default": 1, "description": "number of images"},
        "size": {"type": "string", "default": "auto", "description": "WIDTHxHEIGHT, or auto: see /v1/models"},
        "quality": {"enum": [*QUALITIES], "default": "auto", "description": "sets the steps, unless they are given"},
        "response_format": {"enum": ["b64_json"], "default": "b64_json"},
        "background": {"enum": ["auto", "opaque"], "default": "auto"},
        "stream": {"type": "boolean", "default": False, "description": "answer with server-sent events"},
        "partial_images": {
            "type": "integer",
            "minimum": 0,
            "maximum": MAX_PARTIAL,
            "default": 0,
            "description": "unfinished pictures in the stream",
        },
        **ignored,
    }


@cache
def body_schema() -> dict[str, Any]:
    """JSON schema of the body of `/v1/images/generations`."""
    own = request_properties()
    properties = {**own, **{name: schema for name, schema in call_properties().items() if name not in own}}
    return {"type": "object", "properties": properties, "required": ["prompt"], "additionalProperties": False}


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request asks for besides the call: how it is answered, and what the answer repeats.

    `words`: what the client called options, by their names in the table.
    """

    call: dict[str, Any]
    stream: bool
    previews: Previews | None
    quality: str
    words: Mapping[str, str]


def translated(body: Mapping[str, Any], model: ServedModel, *, picture_size: tuple[int, int] | None = None) -> Asked:
    """The fields of a body as those of a call. Raises `InputError`, or `ApiError` with the field's name.

    Args:
        picture_size: of the picture to begin from; "auto" is then the model's size that is most like it.
    """
    fields = {name: value for name, value in body.items() if value is not None and name not in IGNORED}
    if not isinstance(fields.get("prompt"), str):
        raise ApiError(400, "prompt: expected a text", "invalid_request", param="prompt")
    if (form := fields.pop("response_format", "b64_json")) != "b64_json":
        text = "response_format: expected b64_json; for pictures at an address use POST /v1/jobs"
        raise ApiError(
            400, text if form == "url" else text.partition(";")[0], "unsupported_value", param="response_format"
        )
    if fields.pop("background", "auto") not in ("auto", "opaque"):
        raise ApiError(400, "background: expected auto or opaque", "unsupported_value", param="background")
    _set_count(fields)
    _set_size(fields, model, picture_size)
    quality = _set_quality(fields, model)
    stream, partial = fields.pop("stream", False), fields.pop("partial_images", 0)
    if not isinstance(stream, bool):
        raise ApiError(400, "stream: expected true or false", "invalid_request", param="stream")
    if isinstance(partial, bool) or not isinstance(partial, int) or not 0 <= partial <= MAX_PARTIAL:
        raise ApiError(
            400, "partial_images: expected an integer from 0 to 3", "invalid_request", param="partial_images"
        )
    previews = Previews("auto", partial) if stream and partial else None
    words = {"num_images_per_prompt": "n"} if body.get("n") is not None else {}
    return Asked(fields, stream, previews, quality, words)


def _set_count(fields: dict[str, Any]) -> None:
    count = fields.pop("n", None)
    if count is not None and fields.setdefault("num_images_per_prompt", count) != count:
        raise InputError("n and num_images_per_prompt differ: pass one of them")


def _set_size(fields: dict[str, Any], model: ServedModel, picture_size: tuple[int, int] | None) -> None:
    size = fields.pop("size", "auto")
    if size == "auto":
        if picture_size is not None and not {"width", "height"} & fields.keys():
            fields["width"], fields["height"] = model.nearest_size(picture_size)
        return
    width, _, height = str(size).partition("x")
    if not isinstance(size, str) or not re.fullmatch("[0-9]{1,6}x[0-9]{1,6}", size):
        raise ApiError(400, f"size={str(size)[:40]!r}: expected auto or WIDTHxHEIGHT", "invalid_request", param="size")
    chosen = int(width), int(height)
    if (fields.setdefault("width", chosen[0]), fields.setdefault("height", chosen[1])) != chosen:
        raise InputError("size differs from width and height: pass one of them")
    if chosen not in model.sizes:
        raise ApiError(400, model.wrong_size(chosen), "unsupported_size", param="size")


def _set_quality(fields: dict[str, Any], model: ServedModel) -> str:
    quality = fields.pop("quality", "auto")
    if not isinstance(quality, str) or quality not in QUALITIES:
        raise ApiError(400, f"quality: expected one of {', '.join(QUALITIES)}", "invalid_request", param="quality")
    given = {"num_inference_steps", "steps", "timesteps", "sigmas"} & fields.keys()
    if not given and QUALITIES[quality] != 1:
        default = model.bundle.manifest.defaults.num_inference_steps
        fields["num_inference_steps"] = max(1, min(round(default * QUALITIES[quality]), model.limits.steps))
    return _ANSWERED.get(quality, quality)
