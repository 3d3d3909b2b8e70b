"""latentrt-draw: picture files, places, arguments and interrupts."""

import io
import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.exports import SHAPES
from support.native import built, library, onnxruntime_library

from latentrt.runtime import Pipeline
from latentrt.runtime.goldens import psnr


def command(*arguments: object) -> list[str]:
    """A call of the program."""
    return [str(word) for word in (built() / "latentrt-draw", *arguments, f"--bundle={SHAPES.bundle}")]


def environment() -> dict[str, str]:
    """Where ONNX Runtime is."""
    return {**os.environ, "LATENTRT_ONNXRUNTIME": str(onnxruntime_library())}


def draw(*arguments: object) -> "subprocess.CompletedProcess[str]":
    """Run the program to its end."""
    return subprocess.run(command(*arguments), capture_output=True, text=True, check=False, env=environment())


def photo(file: Path, orientation: int) -> Path:
    """A JPEG file that was held in one of EXIF's eight ways."""
    small = np.random.default_rng(9).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    image = Image.fromarray(small).resize((112, 80), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(file, quality=95, exif=exif)
    return file


@pytest.mark.slow
def test_photos_are_turned_upright(tmp_path: Path) -> None:
    """As Python does, for each orientation."""
    with Pipeline.load(SHAPES.bundle, backend="onnxruntime", device="cpu") as pipe:
        for orientation in range(1, 9):
            file = photo(tmp_path / f"{orientation}.jpg", orientation)
            expected = pipe("a star", image=str(file), strength=0.4, num_inference_steps=3, seed=2).images[0]
            out = tmp_path / "out" / f"{orientation}.png"
            done = draw("a star", "--image", file, "--strength=0.4", "--steps", 3, "--seed", 2, "-o", out)
            assert done.returncode == 0, done.stderr
            assert psnr(np.asarray(Image.open(out)), np.asarray(expected)) >= 45, orientation


def test_pictures_that_cannot_be_read(tmp_path: Path) -> None:
    whole = photo(tmp_path / "whole.jpg", 1).read_bytes()
    thumbnail = io.BytesIO()
    Image.new("RGB", (8, 8)).save(thumbnail, "JPEG")
    cases = {
        "half.jpg": (whole[: len(whole) // 2], "is truncated"),
        # The end of a thumbnail is not that of the picture.
        "thumb.jpg": (whole[:2] + thumbnail.getvalue()[2:] + whole[2 : len(whole) // 2], "is truncated"),
        "latents.npy": (b"\x93NUMPY\x01\x00", "holds latents"),
        "text.png": (b"no picture", "expected PNG, JPEG, BMP, GIF, TGA or PNM"),
    }
    for name, (content, text) in cases.items():
        (tmp_path / name).write_bytes(content)
        done = draw("a star", "--image", tmp_path / name, "-o", tmp_path / "x.png")
        assert (done.returncode, text in done.stderr) == (1, True), (name, done.stderr)
    assert not (tmp_path / "x.png").exists()


def test_places_are_checked_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "taken.png").mkdir()
    done = draw("a star", "--steps=400", "-o", tmp_path / "taken.png")
    assert done.returncode == 1
    assert "taken.png cannot be written: Is a directory" in done.stderr
    done = draw("a star", "--steps=1", "--height=64", "--width=64", "-o", tmp_path / "new" / "folder" / "x.png")
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == ["x.png"]


def test_arguments(tmp_path: Path) -> None:
    size = ("--height=64", "--width=64", "--steps=1")
    done = draw(*size, "-o", tmp_path / "x.png", "--", "--a prompt with dashes")
    assert done.returncode == 0, done.stderr
    assert Image.open(tmp_path / "x.png").info["parameters"].startswith("--a prompt with dashes\n")
    version = subprocess.run(command("--version"), capture_output=True, text=True, check=True).stdout
    assert version.strip() == library().latentrt_version().decode()
    names = draw("--schedulers").stdout.splitlines()
    assert "euler_a" in names
    assert "" not in names
    done = draw("a star", "--plan", SHAPES.bundle / "plans" / next((SHAPES.bundle / "plans").iterdir()).name)
    assert "this is a plan pack, not one plan" in done.stderr


def test_an_interrupt_leaves_nothing(tmp_path: Path) -> None:
    out = tmp_path / "x.png"
    words = command("a star", "--steps=50", "--height=256", "--width=256", "--preview", "-o", out)
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=environment())
    preview = tmp_path / "x.preview.png"
    for _ in range(600):
        if preview.exists():
            break
        time.sleep(0.05)
    assert preview.exists()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted; no incomplete files were left" in errors
    assert list(tmp_path.iterdir()) == []
