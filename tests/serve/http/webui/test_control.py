"""The form of the web UI's ControlNet extension."""

from types import SimpleNamespace
from typing import Any

import pytest

from latentrt.runtime.errors import InputError
from latentrt.serve.http.webui.control import control_of

MODEL: Any = SimpleNamespace(
    name="sd",
    controls={
        "canny": SimpleNamespace(kind="controlnet"),
        "pose": SimpleNamespace(kind="controlnet"),
        "face": SimpleNamespace(kind="ip-adapter"),
    },
)


def units(*args: Any) -> dict[str, Any]:
    return {"ControlNet": {"args": list(args)}}


def test_units_become_options() -> None:
    first = {"model": "canny [e3fe7712]", "image": "AAAA", "weight": 0.5, "module": "none", "pixel_perfect": True}
    second = {"model": "pose", "input_image": "BBBB", "guidance_start": 0.1, "guidance_end": 0.9, "control_mode": 0}
    off = {"model": "anything", "enabled": False}
    assert control_of(units(first, second, off), MODEL, None) == {
        "control_image": {"canny": "AAAA", "pose": "BBBB"},
        "controlnet_conditioning_scale": {"canny": 0.5},
        "control_guidance_start": {"pose": 0.1},
        "control_guidance_end": {"pose": 0.9},
    }
    assert control_of({}, MODEL, None) == {}
    assert control_of({"ADetailer": {"args": []}}, MODEL, None) == {}
    of_img2img = control_of(units({"model": "canny"}), MODEL, "CCCC")
    assert of_img2img == {"control_image": {"canny": "CCCC"}}
    nested = control_of(units({"model": "canny", "image": {"image": "DDDD", "mask": ""}}), MODEL, None)
    assert nested == {"control_image": {"canny": "DDDD"}}


@pytest.mark.parametrize(
    ("scripts", "message"),
    [
        ([1], "expected an object"),
        ({"controlnet": [1]}, "with the list args"),
        ({"ADetailer": {"args": [True]}}, "not served but for controlnet: leave out ADetailer"),
        (units({"model": "canny", "image": "A", "module": "openpose_full"}), "module='openpose_full': expected 'none'"),
        (units({"model": "canny", "image": "A", "control_mode": 2}), "control_mode=2: expected 0"),
        (units({"model": "canny", "image": "A", "wieght": 1}), "unknown field 'wieght'"),
        (units({"model": "depth", "image": "A"}), "unknown ControlNet 'depth'"),
        (units({"model": "face", "image": "A"}), "unknown ControlNet 'face'"),
        (units({"model": "canny"}), "expected image, base64"),
        (units({"model": "canny", "image": "A"}, {"model": "canny", "image": "B"}), "stands in two units"),
        (units("canny"), "expected an object"),
    ],
)
def test_what_is_not_served_is_refused(scripts: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        control_of(scripts, MODEL, None)


def test_a_server_without_nets() -> None:
    model: Any = SimpleNamespace(name="sd", controls={})
    with pytest.raises(InputError, match="sd has no ControlNet at this server"):
        control_of(units({"model": "canny", "image": "A"}), model, None)
