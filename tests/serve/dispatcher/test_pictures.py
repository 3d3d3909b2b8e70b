"""Finished pictures: what is in their files."""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.lora_files import shapes_file
from support.serving import Device

from latentrt.runtime import Pipeline
from latentrt.serve.messages import DispatcherOptions, ModelSpec, Output, Picture


@pytest.fixture(scope="module")
def loras(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("secret-folder")
    shapes_file(folder / "ink.safetensors", 5)
    return folder


@pytest.fixture(scope="module")
def device(loras: Path) -> Iterator[Device]:
    spec = ModelSpec("shapes", backend="onnxruntime", loras=loras)
    device = Device(spec, DispatcherOptions(device="cpu", lazy=True))
    yield device
    device.close()


def drawn(device: Device, output: Output) -> bytes:
    options = {"seed": 3, "num_inference_steps": 3}
    job = device.submit("a red star", options, loras=(("ink", 0.5),), output=output)
    device.wait([job])
    (picture,) = (event for event in device.events[job.id] if isinstance(event, Picture))
    return picture.data


def test_a_png_holds_the_text_that_draws_it_again_and_no_path(device: Device, loras: Path) -> None:
    data = drawn(device, Output("png"))
    assert str(loras).encode() not in data
    with Image.open(io.BytesIO(data)) as image:
        text = json.loads(image.info["latentrt"])
        assert text["loras"][0]["path"] == "ink.safetensors"
        assert "<lora:ink:0.5>" in image.info["parameters"]
        pixels = np.asarray(image)
    with Pipeline.load(backend="onnxruntime", device="cpu") as pipe:
        pipe.set_loras({loras / "ink.safetensors": 0.5})
        alone = pipe("a red star", seed=3, num_inference_steps=3, output_type="np").images
    np.testing.assert_array_equal(pixels, np.asarray(alone)[0])
    assert drawn(device, Output("raw")) == pixels.tobytes()


def test_a_png_without_text(device: Device) -> None:
    with Image.open(io.BytesIO(drawn(device, Output("png", text=False)))) as image:
        assert not {"latentrt", "parameters"} & image.info.keys()


@pytest.mark.parametrize("kind", ["jpeg", "webp"])
def test_quality(device: Device, kind: str) -> None:
    sizes = [len(drawn(device, Output(kind, quality))) for quality in (10, 95)]  # type: ignore[arg-type]
    assert sizes[0] < sizes[1]
