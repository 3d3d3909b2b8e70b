"""The C++ example (docs/embedding): golden pictures, the same pictures as Python, and errors for bad files."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from PIL import Image
from safetensors.numpy import load_file
from support.exports import ROOT, SHAPES, Exported

from latentrt.runtime import Pipeline
from latentrt.runtime.cli.main import main
from latentrt.runtime.goldens import psnr
from latentrt.runtime.text import Tokenizer

Draw = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def draw() -> Draw:
    """Compile the program if needed, and run it."""
    for tool in ("make", "cmake", "g++"):
        if shutil.which(tool) is None:
            pytest.fail(f"the example in C++ needs {tool}: apt-get install {tool}")
    built = subprocess.run(["make", "embedding"], cwd=ROOT, capture_output=True, text=True, check=False)
    if built.returncode:
        pytest.fail(f"make embedding: {built.stdout[-2000:]}{built.stderr[-2000:]}")
    (library,) = Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so*")

    def run(bundle: Path, *arguments: object) -> "subprocess.CompletedProcess[str]":
        command = [ROOT / "out" / "embedding" / "draw", bundle, "--onnxruntime", library, *arguments]
        return subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)

    return run


def pixels(file: Path) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(file))


def write_plan(file: Path, capsys: pytest.CaptureFixture[str], name: str, steps: int, *options: str) -> Path:
    """Write the output of `latentrt schedule` for the embedded model."""
    assert main(["schedule", name, "--steps", str(steps), "--bundle", str(SHAPES.bundle), "--json", *options]) == 0
    file.write_text(capsys.readouterr().out)
    return file


def altered(folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """The embedded bundle, as links, with a changed manifest."""
    shutil.copytree(SHAPES.bundle, folder, copy_function=os.symlink)
    manifest = json.loads((folder / "bundle.json").read_text())
    change(manifest)
    (folder / "bundle.json").unlink()
    (folder / "bundle.json").write_text(json.dumps(manifest))
    return folder


def refused(result: "subprocess.CompletedProcess[str]", *texts: str, status: int = 1) -> None:
    assert result.returncode == status
    for text in ("draw: ", *texts):
        assert text in result.stderr


def test_it_draws_the_golden_picture(draw: Draw, tmp_path: Path) -> None:
    """The program itself compares latents and picture; this test compares its PNG with the golden file."""
    result = draw(SHAPES.bundle, "-o", tmp_path / "golden.png")
    assert result.returncode == 0, result.stderr
    assert "latents: relative error" in result.stdout
    assert "picture: PSNR" in result.stdout
    golden = load_file(SHAPES.bundle / "golden" / "golden.safetensors")["image"]
    assert psnr(pixels(tmp_path / "golden.png"), golden) >= 50


@pytest.mark.slow
def test_it_draws_with_another_precision(draw: Draw, exported: Callable[[str], Exported]) -> None:
    """Float16 tensors pass from graph to graph without conversion."""
    result = draw(exported("sd2-fp16").bundle)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("scheduler", "steps", "seed", "guidance", "height", "width"),
    [
        ("unipc_karras", 9, 3, 2.5, 128, 128),
        # Noise between calls, a seed of more than 32 bits, and a noise size that is not a multiple of 16.
        ("euler_a", 6, 2**40 + 5, 4.0, 72, 88),
        # No guidance, two calls per step.
        ("heun", 4, 11, 1.0, 64, 128),
        # A draw that a register keeps; guidance of each call.
        ("dpm++_sde", 3, 5, 2.0, 64, 64),
        ("euler_a_cfg_pp", 5, 6, 0.7, 64, 64),
    ],
)
def test_it_draws_the_same_pictures_as_python(
    scheduler: str,
    steps: int,
    seed: int,
    guidance: float,
    height: int,
    width: int,
    draw: Draw,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    texts = ["a circle", "a small green square on a white background"]
    plan = write_plan(tmp_path / "plan.json", capsys, scheduler, steps)
    with Pipeline.load(SHAPES.bundle, device="cpu") as pipe:
        (facts,) = pipe.bundle.manifest.model.text_encoders
        ids = Tokenizer.from_file(SHAPES.bundle / facts.tokenizer, facts).encode(texts).ids
        expected = pipe(
            texts[1],
            negative_prompt=texts[0],
            scheduler=scheduler,
            num_inference_steps=steps,
            seed=seed,
            guidance_scale=guidance,
            height=height,
            width=width,
        ).images[0]
    (tmp_path / "ids.json").write_text(json.dumps(ids.tolist()))
    out = tmp_path / "out.png"
    options = {"--plan": plan, "--ids": tmp_path / "ids.json", "--seed": seed, "--guidance": guidance, "-o": out}
    options |= {"--height": height, "--width": width}
    result = draw(SHAPES.bundle, *(word for option in options.items() for word in option))
    assert result.returncode == 0, result.stderr
    assert pixels(out).shape == (height, width, 3)
    assert psnr(pixels(out), np.asarray(expected)) >= 50


def test_another_picture_than_the_golden_one_is_an_error(draw: Draw, tmp_path: Path) -> None:
    """The seed in the manifest differs from that of the goldens."""
    other = tmp_path / "other"
    shutil.copytree(SHAPES.bundle, other)
    manifest = json.loads((other / "bundle.json").read_text())
    manifest["golden"]["seed"] += 1
    (other / "bundle.json").write_text(json.dumps(manifest))
    refused(draw(other), "the picture is not the golden one")


@pytest.mark.parametrize(
    ("change", "texts"),
    [
        (lambda m: m.update(format="latentrt.bundle/2"), ["latentrt.bundle/2", "latentrt.bundle/1"]),
        (lambda m: m.update(colour="red"), ["unknown key", '"colour"']),
        (lambda m: m["model"].pop("registers"), ["bundle.json", "'registers' not found"]),
        (lambda m: m["files"].update({"../x": {"size": 1, "sha256": ""}}), ["outside of the bundle: ../x"]),
        (lambda m: m["files"]["denoise.onnx.data"].update(size=7), ["denoise.onnx.data has", "not 7"]),
        (lambda m: m["model"].update(registers=6), ["no plan for 6 registers", "golden.safetensors"]),
        (
            lambda m: m["graphs"]["time"]["inputs"].append({"name": "pooled", "dtype": "float32", "shape": ["n", 8]}),
            ["time.onnx has the input pooled"],
        ),
    ],
)
def test_bad_manifests(
    change: Callable[[dict[str, Any]], object], texts: list[str], draw: Draw, tmp_path: Path
) -> None:
    refused(draw(altered(tmp_path / "altered", change)), *texts)


def test_missing_and_truncated_files(draw: Draw, tmp_path: Path) -> None:
    refused(draw(tmp_path / "nowhere"), "bundle.json cannot be opened")
    folder = altered(tmp_path / "altered", dict.copy)
    whole = (folder / "bundle.json").read_text()
    (folder / "bundle.json").write_text(whole[: len(whole) // 2])
    refused(draw(folder), "bundle.json cannot be read", "parse error")
    (folder / "bundle.json").write_text(whole)
    (folder / "denoise.onnx").unlink()
    refused(draw(folder), "denoise.onnx is missing")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda p: p.update(initial=p["initial"][:-1]), "no plan for 7 registers (initial has 6"),
        (lambda p: p["coefficients"].pop(), "no plan for 7 registers"),
        (lambda p: p["draws"].append(False), "no plan for 7 registers"),
        (lambda p: p["timesteps"].append("x"), "type must be number"),
        (lambda p: p["initial"][0].reverse(), "begins from a picture"),
        (lambda p: p.update(format="latentrt.plan/2"), "latentrt.plan/2"),
        (lambda p: p["scheduler_config"].update(prediction_type="epsilon"), "write the plan with --bundle"),
    ],
)
def test_bad_plans(
    change: Callable[[dict[str, Any]], object],
    text: str,
    draw: Draw,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    plan = write_plan(tmp_path / "plan.json", capsys, "ddim", 3)
    document = json.loads(plan.read_text())
    change(document)
    plan.write_text(json.dumps(document))
    refused(draw(SHAPES.bundle, "--plan", plan), "plan.json", text)


def test_bad_options(draw: Draw, tmp_path: Path) -> None:
    refused(draw(SHAPES.bundle, "--seed", "7x"), "--seed 7x: not a number", "usage: draw", status=2)
    refused(draw(SHAPES.bundle, "--sneed", "7"), "--sneed", "usage: draw", status=2)
    refused(draw(SHAPES.bundle, "--seed"), "--seed needs a value", status=2)
    refused(draw(SHAPES.bundle, "--device", "tpu"), "--device tpu", status=2)
    refused(draw(SHAPES.bundle, "--height", "100"), "multiples of 8")
    refused(draw(SHAPES.bundle, "-o", tmp_path / "nowhere" / "x.png"), "cannot be written")
    (tmp_path / "ids.json").write_text("[[49406, 49407], [49406, 320, 49407]]")
    refused(draw(SHAPES.bundle, "--ids", tmp_path / "ids.json"), "ids.json must hold", "77 each")


def test_bad_libraries(draw: Draw) -> None:
    refused(draw(SHAPES.bundle, "--onnxruntime", "/nowhere/libonnxruntime.so"), "cannot be loaded", "/nowhere")
    refused(draw(SHAPES.bundle, "--onnxruntime", "libm.so.6"), "libm.so.6 is not ONNX Runtime")
