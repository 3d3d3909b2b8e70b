"""The text in a PNG file: what its picture was drawn from, for web UIs and as JSON that can draw it again."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentrt.runtime.bundle.manifest import CheckpointRecord
from latentrt.runtime.files import sha256_of_file
from latentrt.runtime.latents import FileRow, holds_several, is_npy, read_npy
from latentrt.runtime.scheduler import Plan
from latentrt.runtime.scheduler.web_ui_names import to_web_ui
from latentrt.runtime.text import TextInput

from .guidance import PLUS_PLUS, is_plus_plus
from .options import OPTIONS
from .request import Request

FORMAT = "latentrt.picture/1"
# Too large for a PNG's text.
BY_HASH = ("image", "mask_image", "latents", "control_image", "ip_adapter_image", "t2i_image")


@dataclass(frozen=True, slots=True)
class LoraFile:
    """A LoRA in use: its file, the file's hash, and its weight."""

    path: Path
    sha256: str
    weight: float


@dataclass(frozen=True, slots=True)
class Source:
    """What the pictures of a call have in common besides their options: model, LoRAs, version of latentrt.

    Attributes:
        private: files are named without their folders, as whoever gets the picture must not learn of them.
        refiner: the model that goes on from `refiner_start`.
    """

    model: str
    model_sha256: str
    loras: tuple[LoraFile, ...]
    version: str
    private: bool = False
    refiner: CheckpointRecord | None = None


def png_text(request: Request, index: int, source: Source) -> dict[str, str]:
    """Text chunks of one picture: `parameters` for web UIs, `latentrt` as JSON."""
    request = request.first or request
    values = _own_values(request, index)
    return {
        "parameters": _web_ui_text(values, source, plus_plus=is_plus_plus(request.plan)),
        "latentrt": json.dumps(_document(values, source), ensure_ascii=False),
    }


def _own_values(request: Request, index: int) -> dict[str, Any]:
    """The prompt and all options for one image of a call, as a call that draws this image alone would give them."""
    positive, negative = request.positive, request.negative
    own = {
        "seed": request.seeds[index],
        "height": request.height,
        "width": request.width,
        "num_inference_steps": request.num_inference_steps,
        "scheduler": request.options["scheduler"] or request.scheduler,
        "strength": None if request.scheduler is None else request.strength,  # a compiled plan has its strength
        "negative_prompt": _text(negative, 0, index),
        "prompt_2": _second(positive, index),
        "negative_prompt_2": _second(negative, index),
        "num_images_per_prompt": None,
        **{name: _one_of(request, name, index) for name in ("image", "mask_image")},
        **{
            name: None if use is None or use.given is None else _picture_source(use.given, int(use.rows[index]))
            for name, use in (("t2i_image", request.features), ("ip_adapter_image", request.image_prompt))
        },
        "control_image": {use.net: _picture_source(use.given, int(use.rows[index])) for use in request.nets} or None,
        "latents": None if request.noise is None else _row_source(request.options["latents"], request.noise, index),
    }
    return {"prompt": _text(positive, 0, index), **request.options, **own}


def _text(side: TextInput, column: int, index: int) -> str | None:
    return side.texts[column][index].text if side.is_text else None


def _second(side: TextInput, index: int) -> str | None:
    """The text of the second text encoder, where it differs."""
    text = _text(side, -1, index)
    return None if text == _text(side, 0, index) else text


def _one_of(request: Request, name: str, index: int) -> dict[str, Any] | None:
    """Path and hash of the picture or mask that one image was drawn from."""
    given = request.options[name]  # type: ignore[literal-required]
    if given is None or request.image is None:
        return None
    if isinstance(given, FileRow):
        return dict(given.source)
    row = int(request.image.rows[index])
    if name == "image" and request.image.latents is not None:
        return _row_source(given, request.image.latents, row)
    if name == "image" and is_npy(given) and holds_several(rows := read_npy(given)):
        return _row_source(given, rows, row if len(rows) > 1 else 0)
    return _picture_source(given, row)


def _picture_source(given: Any, row: int) -> dict[str, Any]:
    """Path and hash of one of the pictures that were given."""
    if isinstance(given, FileRow):
        return dict(given.source)
    if holds_several(given):
        given = given[row if len(given) > 1 else 0]
    if not _is_path(given):
        return hashed(given)
    try:
        return {"path": _absolute(given), "sha256": sha256_of_file(Path(given))}
    except OSError:  # it was there when it was read; the picture is drawn by now, and must not be lost
        return {"path": _absolute(given), "sha256": None}


def _row_source(given: Any, rows: NDArray[Any], index: int) -> dict[str, Any]:
    """The hash of one row of an array, and its place in the file that it came from."""
    if isinstance(given, FileRow):
        return dict(given.source)
    return {**({"path": _absolute(given), "index": index} if _is_path(given) else {}), **hashed(rows[index])}


def _absolute(given: Any) -> str:
    """The path of an input from everywhere: whoever draws the image again may be in another folder."""
    return str(Path(given).absolute())


def _is_path(given: object) -> bool:
    return isinstance(given, str | os.PathLike)


def hashed(given: Any) -> dict[str, Any]:
    """The hash of a picture or an array that came from memory."""
    import hashlib  # imported here because importing latentrt does not need it

    return {"sha256": hashlib.sha256(np.ascontiguousarray(given).tobytes()).hexdigest()}


def _document(values: Mapping[str, Any], source: Source) -> dict[str, Any]:
    """The content of the chunk `latentrt`; options that were off are left out."""
    options = {}
    for name, option in OPTIONS.items():
        value = values[name]
        if value is None:
            continue
        if name in BY_HASH:
            options[name] = value
        elif option.json:
            options[name] = option.kind.to_json(value)
        elif name.endswith("embeds"):
            options[name] = hashed(value)
    loras = [
        {
            "path": lora.path.name if source.private else _absolute(lora.path),
            "sha256": lora.sha256,
            "weight": lora.weight,
        }
        for lora in source.loras
    ]
    refiner = {}
    if (used := _refiner(values, source)) is not None:
        refiner = {"refiner": used.name, "refiner_sha256": used.sha256}
    return {
        "format": FORMAT,
        "prompt": values["prompt"],
        **options,
        **refiner,
        "loras": loras,
        "model": source.model,
        "model_sha256": source.model_sha256,
        "version": source.version,
    }


def _refiner(values: Mapping[str, Any], source: Source) -> CheckpointRecord | None:
    return None if values["refiner_start"] is None else source.refiner


def _web_ui_text(values: Mapping[str, Any], source: Source, *, plus_plus: bool) -> str:
    """The form that web UIs write and read: prompt, negative prompt, then a line of settings.

    `plus_plus`: the sampler is one of CFG++, whose scale web UIs write as another one.
    """
    words = [values["prompt"] or "", *(f"<lora:{lora.path.stem}:{lora.weight:g}>" for lora in source.loras)]
    lines = [" ".join(words)]
    if values["negative_prompt"]:
        lines.append(f"Negative prompt: {values['negative_prompt']}")
    settings = {}
    for name, option in OPTIONS.items():
        if option.web_ui is not None and values[name] is not None:
            label, shown = option.web_ui
            scale = PLUS_PLUS if plus_plus and name == "guidance_scale" else 1
            settings[label] = shown(values[name] if scale == 1 else scale * values[name])
        if name == "scheduler":
            settings["Sampler"], settings["Schedule type"] = _sampler(values[name])
    if (refiner := _refiner(values, source)) is not None:
        settings["Refiner"] = f"{refiner.name} [{refiner.sha256[:10]}]"
    settings |= {
        "Size": f"{values['width']}x{values['height']}",
        "Model hash": source.model_sha256[:10],
        "Model": source.model,
        "Version": f"latentrt {source.version}",
    }
    lines.append(", ".join(f"{label}: {value}" for label, value in settings.items() if value is not None))
    return "\n".join(lines)


def _sampler(value: str | Mapping[str, Any] | Plan) -> tuple[str | None, str | None]:
    """Sampler and schedule type as web UIs write them, where they have them."""
    if isinstance(value, Plan):
        return "custom plan", None
    if isinstance(value, str):
        return to_web_ui(value.partition(":")[0]) or (value, None)
    name = value.get("name", value.get("_class_name"))
    kind = value.get("schedule_type")
    return to_web_ui(f"{name}_{kind}" if kind else str(name)) or (name, None)
