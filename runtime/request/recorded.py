"""Reads the text of a PNG file back into options, so that its picture can be drawn again."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from latentrt.runtime.errors import InputError
from latentrt.runtime.files import sha256_of_file
from latentrt.runtime.latents import FileRow, read_npy
from latentrt.runtime.scheduler.document import PLAN_FORMAT
from latentrt.runtime.scheduler.naming import options_taken_by

from .metadata import BY_HASH, FORMAT, LoraFile, hashed
from .options import OPTIONS, flag_of
from .web_ui_text import is_web_ui_text, options_of_web_ui

# What reading a text with wrong types or values in any place may raise.
_DAMAGED = (AttributeError, IndexError, KeyError, OSError, OverflowError, RecursionError, TypeError, ValueError)


# A change -> recorded options that say the same in another way, and so cannot stand beside it.
_STEPS = ("num_inference_steps", "timesteps", "sigmas")
_REPLACES: Mapping[str, Sequence[str]] = {
    **{name: [other for other in _STEPS if other != name] for name in _STEPS},
    "strength": ["denoising_start"],
    "denoising_start": ["strength"],
    "prompt_embeds": ["prompt", "prompt_2"],
}


@dataclass(frozen=True, slots=True, eq=False)
class Recorded:
    """The recorded call of one picture.

    Attributes:
        options: those of `Pipeline.__call__`, the prompt included.
        refiner, refiner_sha256: of the model that went on from `refiner_start`; "" where there was none.
    """

    options: dict[str, Any]
    loras: tuple[LoraFile, ...]
    model: str
    model_sha256: str
    refiner: str = ""
    refiner_sha256: str = ""


def recorded_in(path: Path, changes: Mapping[str, Any]) -> Recorded:
    """Read the text of a PNG file that latentrt wrote, or a web UI.

    Args:
        changes: options that replace the recorded ones; files that these no longer need are not looked for.

    Raises: InputError: not such a file, or an input of its picture is missing or has changed.
    """
    text = _texts(path)
    try:
        if "latentrt" not in text and is_web_ui_text(text.get("parameters")):
            return Recorded(*_of_web_ui(path, text["parameters"], changes))
        return _recorded(path, _document(path, text), changes)
    except InputError:
        raise
    except _DAMAGED as error:
        raise InputError(f"the text of {path} is damaged: {error!r}"[:400]) from error


def _recorded(path: Path, document: Mapping[str, Any], changes: Mapping[str, Any]) -> Recorded:
    options = {name: document[name] for name in ("prompt", *OPTIONS) if document.get(name) is not None}
    left_out = {other for name in changes for other in _REPLACES.get(name, ())}
    if isinstance(options.get("scheduler"), Mapping) and "num_inference_steps" in changes:
        left_out |= {"scheduler"} if options["scheduler"].get("format") == PLAN_FORMAT else set()
    if "scheduler" in changes:
        left_out |= _not_taken(changes["scheduler"], document.get("scheduler"))
    options = {name: value for name, value in options.items() if name not in changes and name not in left_out}
    for name in list(options):
        if name.endswith("embeds"):
            raise InputError(f"{path} was drawn from {name}, which a PNG does not hold: draw it again from Python")
        if name == "control_image":
            options[name] = {net: _found(path, name, picture) for net, picture in options[name].items()}
        elif name in BY_HASH:
            options[name] = _found(path, name, options[name])
    loras = tuple(LoraFile(Path(e["path"]), str(e["sha256"]), float(e["weight"])) for e in document["loras"])
    refiner = [str(document.get(name, "")) for name in ("refiner", "refiner_sha256")]
    return Recorded({**options, **changes}, loras, str(document["model"]), str(document["model_sha256"]), *refiner)


def _not_taken(scheduler: Any, recorded: Any) -> set[str]:
    """Recorded options that another scheduler does not take."""
    if isinstance(recorded, Mapping) and recorded.get("format") == PLAN_FORMAT:
        return set()
    return {"eta", "timesteps", "sigmas"} - options_taken_by(scheduler)


def require_unchanged(lora: LoraFile, picture: Path, sha256: Callable[[Path], str]) -> None:
    """Raise `InputError` where a LoRA is not the file that a picture was drawn with; `sha256` hashes LoRAs."""
    if not lora.path.exists() or sha256(lora.path) != lora.sha256:
        raise InputError(
            f"{picture} was drawn with {lora.path} (sha256 {lora.sha256[:16]}…), which is "
            f"{'another file now' if lora.path.exists() else 'not there'}: pass it with --lora FILE:{lora.weight:g}"
        )


def _of_web_ui(
    path: Path, text: str, changes: Mapping[str, Any]
) -> tuple[dict[str, Any], tuple[LoraFile, ...], str, str]:
    try:
        options, model, sha256 = options_of_web_ui(text, changes)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return options, (), model, sha256


def _texts(path: Path) -> dict[str, Any]:
    from PIL import Image

    try:
        with Image.open(path) as image:
            return dict(getattr(image, "text", {}))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{path} cannot be read as a PNG file: {error}") from error


def _document(path: Path, texts: Mapping[str, Any]) -> dict[str, Any]:
    text = texts.get("latentrt")
    if text is None:
        comfyui = "; the workflows of ComfyUI are not read" if "workflow" in texts else ""
        raise InputError(
            f"{path} has no text of latentrt or of a web UI: expected a PNG file as they write it, not edited "
            f"since{comfyui}"
        )
    try:
        document = json.loads(text)
        known = document["format"] == FORMAT
    except _DAMAGED as error:
        raise InputError(f"the text of {path} is damaged, or from an older version of latentrt: {error!r}") from error
    if not known:
        raise InputError(f"the text of {path} has the format {document['format']!r}; expected {FORMAT!r}")
    return dict(document)


def _found(picture: Path, name: str, record: Mapping[str, Any]) -> Any:
    """The file that a picture was drawn from, checked against its hash; one row of a file of latents."""
    file, sha256 = record.get("path"), record.get("sha256")
    problem = "it did not come from a file"
    if file is not None:
        problem = "it is not there" if not Path(file).is_file() else "it has changed"
        if Path(file).is_file() and "index" in record:
            row = read_npy(file)[record["index"] :][:1]
            for read in (row, row.astype(np.float32)):  # as images of bytes, or as latents
                if len(read) and hashed(read[0])["sha256"] == sha256:
                    found = read.view(FileRow)
                    found.source = {**record, "path": str(Path(file).absolute())}
                    return found
        elif Path(file).is_file() and sha256_of_file(Path(file)) == sha256:
            return file
    flag = OPTIONS[name].flag or flag_of(name)
    shown = f"{file or 'an array'} (sha256 {str(sha256)[:16]}…)"
    raise InputError(f"{picture} was drawn from {name} {shown}, and {problem}: pass it with {flag} FILE")
