"""The form of the web UI's ControlNet extension, `alwayson_scripts.controlnet`, as options of a call of ours."""

from collections.abc import Mapping, Sequence
from typing import Any

from latentrt.runtime.errors import InputError, shown, unknown
from latentrt.runtime.request.control_options import NETS
from latentrt.serve.served_model import ServedModel

from .fields import asks_for_nothing

SCRIPTS = "alwayson_scripts"
# Field of a unit -> option of ours, which takes a value for each net.
_NUMBERS = {
    "weight": "controlnet_conditioning_scale",
    "guidance_start": "control_guidance_start",
    "guidance_end": "control_guidance_end",
}
# Without a preprocessor they say nothing, or they are about the web UI's own memory, page and second pass.
_IGNORED = (
    *("pixel_perfect", "processor_res", "threshold_a", "threshold_b", "low_vram", "lowvram", "save_detected_map"),
    *("hr_option", "input_mode", "batch_images", "output_dir", "loopback", "use_preview_as_input", "generated_image"),
)
_PICTURES = ("image", "input_image")
_ONLY = {
    "module": (None, "none", "None"),
    "control_mode": (None, 0, "Balanced"),
    "resize_mode": (None, 0, "Just Resize", "Scale to Fit (Inner Fit)", 1, "Crop and Resize"),
    "mask": (None, ""),
    "mask_image": (None, ""),
    "effective_region_mask": (None, ""),
}
_WHY = {
    "module": "pictures are finished maps here: make the map yourself, and pass module none",
    "control_mode": "prompt and ControlNet are balanced",
    "resize_mode": "the map is resized to the picture",
    "mask": "a ControlNet counts everywhere",
    "mask_image": "a ControlNet counts everywhere",
    "effective_region_mask": "a ControlNet counts everywhere",
}


def control_of(scripts: Any, model: ServedModel, first_picture: Any) -> dict[str, Any]:
    """Options of a call, from the value of `alwayson_scripts`. Raises `InputError` for other scripts and modules.

    Args:
        first_picture: of img2img, which a unit without a picture takes.
    """
    if not isinstance(scripts, Mapping):
        raise InputError(f"{SCRIPTS}={shown(scripts)}: expected an object")
    units: list[Any] = []
    for name, value in scripts.items():
        if asks_for_nothing(value):
            continue
        if name.lower() != "controlnet":
            raise InputError(f"{SCRIPTS} is not served but for controlnet: leave out {name[:40]}")
        given = value.get("args") if isinstance(value, Mapping) else None
        if not isinstance(given, Sequence) or isinstance(given, str):
            raise InputError(f"{SCRIPTS}.{name[:40]}: expected an object with the list args")
        units += given
    found: dict[str, Any] = {}
    for number, unit in enumerate(units):
        where = f"{SCRIPTS}.controlnet.args[{number}]"
        if not isinstance(unit, Mapping):
            raise InputError(f"{where}={shown(unit)}: expected an object")
        if unit.get("enabled", True):
            _add(found, where, unit, model, first_picture)
    return found


def _add(found: dict[str, Any], where: str, unit: Mapping[str, Any], model: ServedModel, first: Any) -> None:
    """Add what a unit asks for to the options."""
    known = (*_PICTURES, *_NUMBERS, *_ONLY, *_IGNORED, "enabled", "model")
    for field, value in unit.items():
        if field not in known:
            raise InputError(f"{where}: {unknown('field', field, known)}")
        if field in _ONLY and value not in _ONLY[field]:
            raise InputError(f"{where}.{field}={shown(value)}: expected {shown(_ONLY[field][1])}: {_WHY[field]}")
    net = _net(where, unit.get("model"), model)
    pictures = found.setdefault("control_image", {})
    if net in pictures:
        raise InputError(f"{where}: {net} stands in two units: pass it once")
    picture = next((unit[field] for field in _PICTURES if unit.get(field)), first)
    if isinstance(picture, Mapping):
        picture = picture.get("image")
    if not picture:
        raise InputError(f"{where}: expected image, base64 of the map")
    pictures[net] = picture
    for field, option in _NUMBERS.items():
        if unit.get(field) is not None:
            found.setdefault(option, {})[net] = unit[field]


def _net(where: str, given: Any, model: ServedModel) -> str:
    """The ControlNet of a name, which may be followed by a hash in brackets."""
    nets = [name for name, control in model.controls.items() if control.kind in NETS]
    if not nets:
        raise InputError(f"{where}: {model.name} has no ControlNet at this server")
    name = given.partition(" [")[0] if isinstance(given, str) else given
    if name not in nets:
        raise InputError(f"{where}.model: {unknown('ControlNet', str(name), nets)}")
    return str(name)
