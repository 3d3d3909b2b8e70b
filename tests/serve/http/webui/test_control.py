"""The form of the web UI's ControlNet extension."""

import base64
import io
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import webuiapi
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter
from support.exports import Exported
from support.real_server import real_server
from support.webui import encoded

from latentrt.runtime import Pipeline
from latentrt.runtime.errors import InputError
from latentrt.serve.http.webui.control import control_of
from latentrt.serve.http.webui.control_maps import Canny, Frame, control_map

MODEL: Any = SimpleNamespace(
    name="sd",
    bundle=SimpleNamespace(manifest=None),
    controls={
        "canny": SimpleNamespace(kind="controlnet"),
        "pose": SimpleNamespace(kind="controlnet"),
        "face": SimpleNamespace(kind="ip-adapter"),
    },
)
FRAME = Frame((64, 64), 100_000)


def units(*args: Any) -> dict[str, Any]:
    return {"ControlNet": {"args": list(args)}}


def drawing(width: int, height: int, seed: int = 3) -> Image.Image:
    """Noise with a disc, of which each row and column differs."""
    pixels = np.random.default_rng(seed).integers(0, 90, (height, width, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    ImageDraw.Draw(picture).ellipse((width // 4, height // 5, width // 2, height // 2), fill="orange")
    return picture


A, B, C, D = (encoded(drawing(64, 64, seed)) for seed in range(4))


def named(found: dict[str, Any]) -> dict[str, Any]:
    """The options, with the letter of each picture."""
    letters = {np.asarray(drawing(64, 64, seed)).tobytes(): letter for seed, letter in enumerate("ABCD")}
    pictures = {net: letters[np.asarray(one).tobytes()] for net, one in found["control_image"].items()}
    return {**found, "control_image": pictures}


def test_units_become_options() -> None:
    first = {"model": "canny [e3fe7712]", "image": A, "weight": 0.5, "module": "none", "pixel_perfect": True}
    second = {"model": "pose", "input_image": B, "guidance_start": 0.1, "guidance_end": 0.9, "control_mode": 0}
    off = {"model": "anything", "enabled": False}
    assert named(control_of(units(first, second, off), MODEL, FRAME)) == {
        "control_image": {"canny": "A", "pose": "B"},
        "controlnet_conditioning_scale": {"canny": 0.5},
        "control_guidance_start": {"pose": 0.1},
        "control_guidance_end": {"pose": 0.9},
    }
    assert control_of({}, MODEL, FRAME) == {}
    assert control_of({"ADetailer": {"args": []}}, MODEL, FRAME) == {}
    of_img2img = control_of(units({"model": "canny"}), MODEL, FRAME, C)
    assert named(of_img2img) == {"control_image": {"canny": "C"}}
    nested = control_of(units({"model": "canny", "image": {"image": D, "mask": ""}}), MODEL, FRAME)
    assert named(nested) == {"control_image": {"canny": "D"}}


def test_an_array_is_a_map_as_it_is() -> None:
    file, array = io.BytesIO(), np.full((8, 16, 3), -1, np.float32)
    np.save(file, array)
    unit = {"model": "canny", "image": base64.b64encode(file.getvalue()).decode()}
    assert np.array_equal(control_of(units(unit), MODEL, FRAME)["control_image"]["canny"], array)
    with pytest.raises(InputError, match="an array has no edges"):
        control_of(units({**unit, "module": "canny"}), MODEL, FRAME)


@pytest.mark.parametrize(
    ("scripts", "message"),
    [
        ([1], "expected an object"),
        ({"controlnet": [1]}, "with the list args"),
        ({"ADetailer": {"args": [True]}}, "not served but for controlnet: leave out ADetailer"),
        (units({"model": "canny", "image": A, "module": "openpose_full"}), "module='openpose_full': expected 'none'"),
        (units({"model": "canny", "image": A, "control_mode": 2}), "control_mode=2: expected 0"),
        (units({"model": "canny", "image": A, "wieght": 1}), "unknown field 'wieght'"),
        (units({"model": "depth", "image": A}), "unknown ControlNet 'depth'"),
        (units({"model": "face", "image": A}), "unknown ControlNet 'face'"),
        (units({"model": "canny"}), "expected image, base64"),
        (units({"model": "canny", "image": A}, {"model": "canny", "image": B}), "stands in two units"),
        (units("canny"), "expected an object"),
        (units({"model": "canny", "image": A, "resize_mode": 3}), "resize_mode=3: expected"),
        (units({"model": "canny", "image": A, "resize_mode": [1]}), "resize_mode=.*: expected"),
        (units({"model": "canny", "image": "no base64!"}), r"args\[0\].image: expected base64"),
        (units({"model": "canny", "image": A, "module": "canny", "threshold_a": 300}), "threshold_a=300: .* 1 to 255"),
        (units({"model": "canny", "image": A, "module": "canny", "processor_res": 32}), "res=32: .* 64 to 2048"),
        (units({"model": "canny", "image": A, "module": "canny", "pixel_perfect": 1}), "pixel_perfect=1: expected"),
        (units({"model": "canny", "image": encoded(drawing(4, 400)), "module": "canny"}), "become a map of 512x51200"),
        (units({"model": "canny", "image": encoded(drawing(400, 2)), "resize_mode": 2, "module": "canny"}), "a map of"),
    ],
)
def test_what_is_not_served_is_refused(scripts: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        control_of(scripts, MODEL, FRAME)


def test_a_server_without_nets() -> None:
    model: Any = SimpleNamespace(name="sd", controls={})
    with pytest.raises(InputError, match="sd has no ControlNet at this server"):
        control_of(units({"model": "canny", "image": A}), model, FRAME)


def shown_by_the_extension(map_: NDArray[np.uint8], size: tuple[int, int], mode: int) -> NDArray[np.uint8]:
    """The map at the size that is drawn, as the extension's `detectmap_proc` lays it out, with PIL's filter."""
    (width, height), (old_height, old_width) = size, map_.shape[:2]
    scales = width / old_width, height / old_height
    scale = min(scales) if mode == 2 else max(scales)
    inner = size if mode == 0 else (round(old_width * scale), round(old_height * scale))
    resized = np.asarray(Image.fromarray(map_).resize(inner, Image.Resampling.LANCZOS))
    if mode == 0:
        return resized
    if mode == 1:
        left, top = (inner[0] - width) // 2, (inner[1] - height) // 2
        return resized[top : top + height, left : left + width]
    borders = np.concatenate([map_[0], map_[-1], map_[:, 0], map_[:, -1]])
    result = np.tile(np.median(borders, axis=0).astype(np.uint8), (height, width, 1))
    left, top = (width - inner[0]) // 2, (height - inner[1]) // 2
    result[top : top + inner[1], left : left + inner[0]] = resized
    return result


@pytest.mark.parametrize("given", [(96, 80), (50, 120), (64, 64), (200, 100)])
@pytest.mark.parametrize("mode", [0, 1, 2])
def test_maps_have_the_shape_that_is_drawn(given: tuple[int, int], mode: Any) -> None:
    picture, size = drawing(*given).filter(ImageFilter.GaussianBlur(4)), (120, 80)
    own = control_map(picture, Frame(size, 100_000), mode, None)
    if mode:
        assert own.width / own.height == pytest.approx(1.5, rel=0.02)
    at_size = np.asarray(own.resize(size, Image.Resampling.LANCZOS)).astype(np.float32)
    theirs = shown_by_the_extension(np.asarray(picture), size, mode)
    for other in (0, 1, 2):
        error = np.abs(at_size - shown_by_the_extension(np.asarray(picture), size, other)).mean()
        same = np.array_equal(theirs, shown_by_the_extension(np.asarray(picture), size, other))
        assert (error < 2) == same, (other, error)


def found_by_opencv(picture: Image.Image, size: tuple[int, int], low: float, high: float) -> NDArray[np.uint8]:
    """Edges of a picture that was resized to this size, as the extension's preprocessor finds them."""
    wide, high_side = size
    how = cv2.INTER_CUBIC if wide > picture.width else cv2.INTER_AREA
    pixels = cv2.resize(np.asarray(picture), (wide, high_side), interpolation=how)
    blocks = cv2.copyMakeBorder(pixels, 0, -high_side % 64, 0, -wide % 64, cv2.BORDER_REPLICATE)
    edges = cv2.Canny(blocks, low, high)[:high_side, :wide]
    return np.repeat(edges[..., None], 3, 2)


@pytest.mark.parametrize(
    ("fields", "size", "thresholds"),
    [
        ({}, (512, 614), (100, 200)),
        ({"processor_res": -1, "threshold_a": -1, "threshold_b": -1}, (512, 614), (100, 200)),
        ({"processor_res": 128.0, "threshold_a": 20, "threshold_b": 60.5}, (128, 154), (20, 60.5)),
        ({"processor_res": 64}, (64, 77), (100, 200)),
        ({"pixel_perfect": True, "processor_res": 64}, (160, 192), (100, 200)),
    ],
)
def test_edges_are_those_of_opencv(
    fields: dict[str, Any], size: tuple[int, int], thresholds: tuple[float, float]
) -> None:
    picture = drawing(80, 96)
    unit = {"model": "canny", "image": encoded(picture), "module": "canny", "resize_mode": 0, **fields}
    frame = Frame((160, 160), 1_000_000)
    got = np.asarray(control_of(units(unit), MODEL, frame)["control_image"]["canny"])
    wanted = found_by_opencv(picture, size, *thresholds)
    assert np.array_equal(got, wanted)
    assert wanted.any()


def test_a_part_that_is_drawn_alone_has_its_part_of_the_map() -> None:
    picture, part = drawing(96, 80), (20, 10, 60, 50)
    frame = Frame((64, 64), 1_000_000, (96, 80), part)
    got = control_map(picture, frame, 1, None)
    assert np.array_equal(np.asarray(got), np.asarray(picture.crop(part)))
    larger = control_map(picture.resize((192, 160), Image.Resampling.NEAREST), frame, 1, None)
    assert larger.size == (40, 40)
    edges = control_map(picture, frame, 1, Canny())
    assert np.array_equal(np.asarray(edges), found_by_opencv(picture.crop(part), (512, 512), 100, 200))


def test_without_opencv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    unit = {"model": "canny", "image": A}
    assert named(control_of(units(unit), MODEL, FRAME)) == {"control_image": {"canny": "A"}}
    with pytest.raises(InputError, match=r"pip install 'latentrt\[canny\]'"):
        control_of(units({**unit, "module": "canny"}), MODEL, FRAME)


def test_a_real_server_draws_by_edges(exported: Callable[[str], Exported], tmp_path: Path) -> None:
    """The client library `webuiapi`; the same picture as a pipeline with OpenCV's map."""
    bundle, net, size = exported("sd1-ports-fp32").bundle, exported("sd1-net").bundle, (48, 40)
    config = tmp_path / "serve.toml"
    config.write_text(
        f"[[model]]\nname = 'sd'\npath = '{bundle}'\nsizes = ['48x40']\ncontrols = {{ edges = '{net}' }}\n"
    )
    photo = drawing(200, 100)
    unit = webuiapi.ControlNetUnit(
        image=photo, module="canny", model="edges", resize_mode="Crop and Resize", processor_res=128, threshold_a=100,
        threshold_b=180, weight=0.8, guidance_end=0.7,
    )  # fmt: skip
    with real_server(f"--config={config}") as server:
        api = webuiapi.WebUIApi(baseurl=f"{server.address}/sdapi/v1", sampler="Euler", steps=3)
        more = {"controlnet_units": [unit], "alwayson_scripts": {}}  # a default that the client would keep units in
        result = api.txt2img(prompt="a cat", seed=5, cfg_scale=4.0, width=48, height=40, **more)
    edges = Image.fromarray(found_by_opencv(photo, (256, 128), 100, 180))
    assert np.asarray(edges).any()
    with Pipeline.load(bundle, backend="onnxruntime", device="cpu", controls={"edges": net}) as pipe:
        wanted = pipe(
            "a cat", seed=5, guidance_scale=4.0, num_inference_steps=3, width=size[0], height=size[1], rng="cuda",
            scheduler={"name": "euler", "schedule_type": "normal"}, control_image=edges.crop((51, 0, 205, 128)),
            controlnet_conditioning_scale=0.8, control_guidance_end=0.7, prompt_syntax="web-ui", long_prompt="chunk",
        ).images[0]  # fmt: skip
    assert np.array_equal(np.asarray(result.image), np.asarray(wanted))
