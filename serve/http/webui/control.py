"""The form of the web UI's ControlNet extension, `alwayson_scripts.controlnet`, as options of a call of ours."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from latentrt.runtime.bundle import Manifest
from latentrt.runtime.errors import InputError, shown, unknown
from latentrt.runtime.request import kinds
from latentrt.runtime.request.control_options import NETS
from latentrt.runtime.request.kinds import Kind
from latentrt.serve.http.given_files import bytes_of_base64, from_bytes
from latentrt.serve.served_model import ServedModel

from .control_maps import RESOLUTION, THRESHOLDS, Canny, Frame, Resize, control_map
from .fields import asks_for_nothing

SCRIPTS = "alwayson_scripts"
# Field of a unit -> option of ours, which takes a value for each net.
_NUMBERS = {
    "weight": "controlnet_conditioning_scale",
    "guidance_start": "control_guidance_start",
    "guidance_end": "control_guidance_end",
}
_OF_CANNY = ("pixel_perfect", "processor_res", "threshold_a", "threshold_b")
# About the web UI's own memory, page and second pass.
_IGNORED = (
    *("low_vram", "lowvram", "save_detected_map"),
    *("hr_option", "input_mode", "batch_images", "output_dir", "loopback", "use_preview_as_input", "generated_image"),
)
_PICTURES = ("image", "input_image")
_RESIZE: Mapping[Any, Resize] = {
    **dict.fromkeys((0, "Just Resize"), 0),
    **dict.fromkeys((1, None, "Crop and Resize", "Scale to Fit (Inner Fit)", "Inner Fit (Scale to Fit)"), 1),
    **dict.fromkeys((2, "Resize and Fill", "Envelope (Outer Fit)", "Outer Fit (Shrink to Fit)"), 2),
}
_ONLY: Mapping[str, tuple[Any, ...]] = {
    "module": (None, "none", "None", "canny"),
    "control_mode": (None, 0, "Balanced"),
    "resize_mode": tuple(_RESIZE),
    "mask": (None, ""),
    "mask_image": (None, ""),
    "effective_region_mask": (None, ""),
}
_WHY = {
    "module": "other maps than those of canny are not made here: make the map yourself, and pass module none",
    "control_mode": "prompt and ControlNet are balanced",
    "resize_mode": "or 'Just Resize', 'Resize and Fill'",
    "mask": "a ControlNet counts everywhere",
    "mask_image": "a ControlNet counts everywhere",
    "effective_region_mask": "a ControlNet counts everywhere",
}


def control_of(
    scripts: Any, model: ServedModel, frame: Frame, first_picture: Any = None, fit: Resize = 0
) -> dict[str, Any]:
    """Options of a call, from the value of `alwayson_scripts`. Raises `InputError` for other scripts and modules.

    Args:
        first_picture, fit: of img2img, which a unit without a picture takes, and the call's `resize_mode`.
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
            _add(found, where, unit, model, frame, (first_picture, fit))
    return found


def _add(
    found: dict[str, Any],
    where: str,
    unit: Mapping[str, Any],
    model: ServedModel,
    frame: Frame,
    first: tuple[Any, Resize],
) -> None:
    """Add what a unit asks for to the options."""
    known = (*_PICTURES, *_NUMBERS, *_ONLY, *_OF_CANNY, *_IGNORED, "enabled", "model")
    for field, value in unit.items():
        if field not in known:
            raise InputError(f"{where}: {unknown('field', field, known)}")
        if field in _ONLY and (isinstance(value, bool | Mapping | list) or value not in _ONLY[field]):
            raise InputError(f"{where}.{field}={shown(value)}: expected {shown(_ONLY[field][1])}: {_WHY[field]}")
    net = _net(where, unit.get("model"), model)
    pictures = found.setdefault("control_image", {})
    if net in pictures:
        raise InputError(f"{where}: {net} stands in two units: pass it once")
    pictures[net] = _map(where, unit, model, frame, first)
    for field, option in _NUMBERS.items():
        if unit.get(field) is not None:
            found.setdefault(option, {})[net] = unit[field]


def _map(where: str, unit: Mapping[str, Any], model: ServedModel, frame: Frame, first: tuple[Any, Resize]) -> Any:
    """The map of a unit, or the array of a .npy file, which is one."""
    own = next((unit[field] for field in _PICTURES if unit.get(field)), None)
    given, resize = (own, _RESIZE[unit.get("resize_mode")]) if own else first
    if isinstance(given, Mapping):
        given = given.get("image")
    if not given:
        raise InputError(f"{where}: expected image, base64 of the map")
    canny = _canny(where, unit, model.bundle.manifest) if unit.get("module") == "canny" else None
    picture = from_bytes(f"{where}.image", bytes_of_base64(f"{where}.image", given), pixels=frame.pixels)
    if not isinstance(picture, np.ndarray):
        return control_map(picture, frame, resize, canny)
    if canny is not None:
        raise InputError(f"{where}.module='canny': an array has no edges: pass a picture")
    return picture


def _canny(where: str, unit: Mapping[str, Any], manifest: Manifest) -> Canny:
    """How edges are found; what is left out or negative is the extension's default."""

    def read(field: str, kind: Kind, default: Any) -> Any:
        value = unit.get(field)
        left_out = value is None or (kinds.is_number(value) and value < 0)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        return default if left_out else kind.check(f"{where}.{field}", value, manifest)

    perfect = read("pixel_perfect", kinds.boolean(), False)
    resolution = read("processor_res", kinds.integer(64, 2048), RESOLUTION)
    low, high = (
        read(field, kinds.number(1, 255), default)
        for field, default in zip(("threshold_a", "threshold_b"), THRESHOLDS, strict=True)
    )
    return Canny(None if perfect else resolution, (low, high))


def _net(where: str, given: Any, model: ServedModel) -> str:
    """The ControlNet of a name, which may be followed by a hash in brackets."""
    nets = [name for name, control in model.controls.items() if control.kind in NETS]
    if not nets:
        raise InputError(f"{where}: {model.name} has no ControlNet at this server")
    name = given.partition(" [")[0] if isinstance(given, str) else given
    if name not in nets:
        raise InputError(f"{where}.model: {unknown('ControlNet', str(name), nets)}")
    return str(name)
