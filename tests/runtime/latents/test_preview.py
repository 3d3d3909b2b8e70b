"""Previews with the map from latents to RGB: colours close to those of the decoder, if the bundle has the map."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.exports import SHAPES

from latentrt.runtime import InputError, Pipeline
from latentrt.runtime.cli.main import main
from latentrt.runtime.goldens import psnr
from latentrt.runtime.latents import rgb_from_latents

CALL: dict[str, Any] = {"prompt": "a small green heart on a yellow background", "seed": 12, "num_inference_steps": 6}


def test_each_latent_pixel_is_one_colour() -> None:
    latents = np.zeros((2, 4, 3, 5), np.float32)
    latents[1, 2, 1, 3], latents[0, 0, 2, 4] = 2.0, np.nan
    matrix = np.zeros((5, 3))
    matrix[2], matrix[0], matrix[4] = (0.1, -0.05, 9), (1, 0, 0), (0.2, 0.1, 0)
    images = rgb_from_latents(latents, matrix.tolist(), factor=8)
    assert images.shape == (2, 24, 40, 3)
    assert images.dtype == np.uint8
    assert (images[1, 8:16, 24:32] == [round(0.4 * 255), 0, 255]).all()
    assert (images[1, :8] == [51, 26, 0]).all()
    assert (images[0, 16:, 32:] == 0).all()  # NaN becomes black


def blocks(image: Any, factor: int = 8) -> np.ndarray[Any, np.dtype[np.uint8]]:
    pixels = np.asarray(image).astype(np.float64)
    height, width = pixels.shape[0] // factor, pixels.shape[1] // factor
    return np.rint(pixels.reshape(height, factor, width, factor, 3).mean((1, 3))).astype(np.uint8)


def test_colours_are_those_of_the_decoder() -> None:
    with Pipeline.load(device="cpu") as pipe:
        *_, step = pipe.stream(**CALL, height=96, width=112)
        fast, exact = step.preview()[0], step.preview("vae")[0]
        other = next(pipe.stream(**{**CALL, "prompt": "a red star on blue"}, height=96, width=112)).preview()[0]
        assert fast.size == exact.size == (112, 96)
        assert not np.array_equal(fast, exact)
        assert psnr(blocks(fast), blocks(exact)) > 18
        assert psnr(blocks(other), blocks(exact)) < 14
        with pytest.raises(InputError, match="unknown preview method 'rgba'; did you mean 'rgb'"):
            step.preview("rgba")
        with pytest.raises(InputError, match=r"shapes has no preview_decoder: use another method, or export .* --prev"):
            step.preview("taesd")


def test_bundles_without_the_map_decode(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(SHAPES.bundle, tmp_path / "older"))
    manifest = json.loads((folder / "bundle.json").read_text())
    del manifest["model"]["latent_rgb"]
    (folder / "bundle.json").write_text(json.dumps(manifest))
    with Pipeline.load(folder, device="cpu") as pipe:
        step = next(pipe.stream(**CALL))
        assert np.array_equal(step.preview()[0], step.preview("vae")[0])
        with pytest.raises(InputError, match="has no latent_rgb: use method='vae', or export the checkpoint again"):
            step.preview("rgb")


def test_the_command_shows_the_picture_while_it_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = []
    replace = Path.replace

    def noted(self: Path, target: Path) -> Path:
        seen.append(Path(target).name)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", noted)
    command = ["generate", CALL["prompt"], "--device", "cpu", "--steps", "3", "--num-images", "2"]
    assert main([*command, "-o", str(tmp_path / "a.png"), "--preview"]) == 0
    assert seen == ["a-0.preview.png", "a-1.preview.png"] * 2 + ["a-0.png", "a-1.png"]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a-0.png", "a-1.png"]
    assert Image.open(tmp_path / "a-0.png").size == (128, 128)
    (tmp_path / "b.preview.png").write_bytes(b"mine")
    assert main([*command[:-2], "-o", str(tmp_path / "b.png"), "--preview"]) == 1
    assert "b.preview.png exists: move it, or draw without --preview" in capsys.readouterr().err
    assert (tmp_path / "b.preview.png").read_bytes() == b"mine"
    assert main(["generate", "--jobs", "-", "--preview"]) == 1
    assert "--preview shows one call, not --jobs" in capsys.readouterr().err
