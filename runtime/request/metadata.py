"""The text in a PNG file: what its picture was drawn from, for web UIs and as JSON that can draw it again."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from latentrt.runtime.errors import InputError
from latentrt.runtime.files import sha256_of_file
from latentrt.runtime.text import TextInput

from .options import OPTIONS, flag_of
from .request import Request

FORMAT = "latentrt.picture/1"
_BY_HASH = ("image", "mask_image", "latents")  # too large for a PNG's text


@dataclass(frozen=True, slots=True)
class LoraFile:
    """A LoRA in use: its file, the file's hash, and how strongly it counts."""

    path: Path
    sha256: str
    weight: float


@dataclass(frozen=True, slots=True)
class Source:
    """What the pictures of a call have in common besides their options: model, LoRAs, version of latentrt."""

    model: str
    model_sha256: str
    loras: tuple[LoraFile, ...]
    version: str


def png_text(request: Request, index: int, source: Source) -> dict[str, str]:
    """Text chunks of one picture: `parameters` for web UIs, `latentrt` as JSON."""
    values = _own_values(request, index)
    return {
        "parameters": _web_ui_text(values, source),
        "latentrt": json.dumps(_document(values, source), ensure_ascii=False),
    }


def _own_values(request: Request, index: int) -> dict[str, Any]:
    """The prompt and all options for one image of a call, as a call that draws this image alone would give them."""
    positive, negative = request.positive, request.negative
    given_by_plan = request.scheduler is None
    own = {
        "seed": request.seeds[index],
        "height": request.height,
        "width": request.width,
        "num_inference_steps": request.num_inference_steps,
        "scheduler": request.options["scheduler"] if given_by_plan else _scheduler(request),
        "strength": None if given_by_plan else request.strength,
        "negative_prompt": _text(negative, 0, index),
        "prompt_2": _second(positive, index),
        "negative_prompt_2": _second(negative, index),
        "num_images_per_prompt": None,
        **{name: _one_of(request, name, index) for name in ("image", "mask_image")},
        "latents": None if request.noise is None else _noise_source(request.options["latents"], request.noise, index),
    }
    return {"prompt": _text(positive, 0, index), **request.options, **own}


def _scheduler(request: Request) -> Any:
    given = request.options["scheduler"]
    return given if isinstance(given, Mapping) else request.scheduler


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
    several = isinstance(given, Sequence) and not isinstance(given, str | bytes)
    if several or (isinstance(given, np.ndarray) and given.ndim == 4):
        given = given[int(request.image.rows[index]) if len(given) > 1 else 0]
    return {"path": os.fspath(given), "sha256": sha256_of_file(Path(given))} if _is_path(given) else _hashed(given)


def _noise_source(given: Any, noise: Any, index: int) -> dict[str, Any]:
    return {**({"path": os.fspath(given), "index": index} if _is_path(given) else {}), **_hashed(noise[index])}


def _is_path(given: object) -> bool:
    return isinstance(given, str | os.PathLike)


def _hashed(given: Any) -> dict[str, Any]:
    """The hash of a picture or an array that came from memory."""
    return {"sha256": hashlib.sha256(np.ascontiguousarray(given).tobytes()).hexdigest()}


def _document(values: Mapping[str, Any], source: Source) -> dict[str, Any]:
    """The content of the chunk `latentrt`; options that were off are left out."""
    options = {}
    for name, option in OPTIONS.items():
        value = values[name]
        if value is None:
            continue
        if name in _BY_HASH:
            options[name] = value
        elif option.json:
            options[name] = option.kind.to_json(value)
        elif name.endswith("embeds"):
            options[name] = _hashed(value)
    loras = [{"path": str(lora.path), "sha256": lora.sha256, "weight": lora.weight} for lora in source.loras]
    return {
        "format": FORMAT,
        "prompt": values["prompt"],
        **options,
        "loras": loras,
        "model": source.model,
        "model_sha256": source.model_sha256,
        "version": source.version,
    }


def _web_ui_text(values: Mapping[str, Any], source: Source) -> str:
    """The form that web UIs write and read: prompt, negative prompt, then a line of settings."""
    words = [values["prompt"] or "", *(f"<lora:{lora.path.stem}:{lora.weight:g}>" for lora in source.loras)]
    lines = [" ".join(words)]
    if values["negative_prompt"]:
        lines.append(f"Negative prompt: {values['negative_prompt']}")
    settings = {}
    for name, option in OPTIONS.items():
        if option.web_ui is not None and values[name] is not None:
            label, shown = option.web_ui
            settings[label] = shown(values[name])
    settings |= {
        "Size": f"{values['width']}x{values['height']}",
        "Model hash": source.model_sha256[:10],
        "Model": source.model,
        "Version": f"latentrt {source.version}",
    }
    lines.append(", ".join(f"{label}: {value}" for label, value in settings.items() if value is not None))
    return "\n".join(lines)


# --- and back ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Recorded:
    """What a PNG file says of its picture. `options` are those of `Pipeline.__call__`, the prompt included."""

    options: dict[str, Any]
    loras: tuple[LoraFile, ...]
    model: str
    model_sha256: str


def recorded_in(path: Path, changes: Mapping[str, Any]) -> Recorded:
    """Read the text of a PNG file that latentrt wrote.

    Args:
        changes: options that replace the recorded ones; files that these no longer need are not looked for.

    Raises: InputError: not such a file, or it was drawn from something that is not there any more.
    """
    document = _read(path)
    options = {name: document[name] for name in ("prompt", *OPTIONS) if document.get(name) is not None}
    options = {name: value for name, value in options.items() if name not in changes}
    for name in list(options):
        if name.endswith("embeds"):
            raise InputError(f"{path} was drawn from {name}, which a PNG does not hold: draw it again from Python")
        if name in _BY_HASH:
            options[name] = _found(path, name, options[name])
    try:
        loras = tuple(LoraFile(Path(e["path"]), e["sha256"], float(e["weight"])) for e in document["loras"])
        return Recorded({**options, **changes}, loras, str(document["model"]), str(document["model_sha256"]))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"the text of {path} is damaged: {error!r}") from error


def require_unchanged(lora: LoraFile, picture: Path) -> None:
    """Raise `InputError` where a LoRA is not the file that a picture was drawn with."""
    if not lora.path.is_file() or sha256_of_file(lora.path) != lora.sha256:
        raise InputError(
            f"{picture} was drawn with {lora.path} (sha256 {lora.sha256[:16]}…), which is "
            f"{'another file now' if lora.path.is_file() else 'not there'}: pass it with --lora FILE:{lora.weight:g}"
        )


def _read(path: Path) -> dict[str, Any]:
    from PIL import Image

    try:
        with Image.open(path) as image:
            text = getattr(image, "text", {}).get("latentrt")
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"{path} cannot be read as a PNG file: {error}") from error
    if text is None:
        raise InputError(f"{path} has no text of latentrt: expected a PNG file that latentrt wrote, not edited since")
    try:
        document = json.loads(text)
        known = document["format"] == FORMAT
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"the text of {path} is damaged, or from an older version of latentrt: {error!r}") from error
    if not known:
        raise InputError(f"the text of {path} has the format {document['format']!r}; expected {FORMAT!r}")
    return dict(document)


def _found(picture: Path, name: str, record: Mapping[str, Any]) -> Any:
    """The file that a picture was drawn from, checked against its hash; for latents the one image's."""
    file, sha256 = record.get("path"), record.get("sha256")
    problem = "it did not come from a file"
    if file is not None:
        problem = "it is not there" if not Path(file).is_file() else "it has changed"
        if Path(file).is_file() and name == "latents":
            noise = np.load(file, allow_pickle=False).astype(np.float32)[record["index"]]
            if _hashed(noise)["sha256"] == sha256:
                return noise[None]
        elif Path(file).is_file() and sha256_of_file(Path(file)) == sha256:
            return file
    flag = OPTIONS[name].flag or flag_of(name)
    shown = f"{file or 'an array'} (sha256 {str(sha256)[:16]}…)"
    raise InputError(f"{picture} was drawn from {name} {shown}, and {problem}: pass it with {flag} FILE")
