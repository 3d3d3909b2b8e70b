"""The recipe of the model `shapes` from scratch, a few steps of each stage; the long run's log is committed."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.common.paths import ROOT, SHAPES_CHECKPOINT
from benchmarks.quality.judge import judge
from benchmarks.shapes.drawings import scene_from_caption
from benchmarks.shapes.drawn import drawn_pool
from benchmarks.shapes.train_vae import SCALING_FACTOR, to_tensor

LOGS = ROOT / "benchmarks" / "shapes" / "logs"


def stage(name: str, *arguments: object) -> str:
    command = [sys.executable, "-m", f"benchmarks.shapes.{name}", *map(str, arguments)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    return run.stdout


@pytest.mark.slow
def test_what_the_model_draws_is_corrected(tmp_path: Path) -> None:
    import torch
    from diffusers import AutoencoderKL

    folder = tmp_path / "shapes"
    shutil.copytree(SHAPES_CHECKPOINT, folder)
    vae = AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=torch.float32)
    pool = drawn_pool(tmp_path / "pool.pt", folder, vae, 12, seed=3)
    again = drawn_pool(tmp_path / "pool.pt", folder, vae, 12, seed=4)
    assert len(pool) == len(again) >= 12
    assert torch.equal(pool.latents, again.latents)
    for picture, caption in zip(pool.pictures, pool.captions, strict=True):
        assert judge(picture, scene_from_caption(caption))["all"]
    with torch.no_grad():
        drawn = vae.decode(pool.latents / SCALING_FACTOR).sample.clamp(-1, 1)
    errors = (drawn - to_tensor(pool.pictures)).abs().mean(dim=(1, 2, 3))
    others = (drawn - to_tensor(np.roll(pool.pictures, 1, axis=0))).abs().mean(dim=(1, 2, 3))
    assert errors.max() < 0.1 < others.mean()

    unet = ["train_unet", "--warm", "--pool", 20, "--drawn", 4, "--state", tmp_path / "unet.pt", "--out", folder]
    assert "2 steps in" in stage(*unet, "--steps", 2)
    decoder = ["train_decoder", "--pool", 20, "--drawn", 4, "--state", tmp_path / "decoder.pt", "--out", folder]
    assert "2 steps in" in stage(*decoder, "--steps", 2)


@pytest.mark.slow
def test_every_stage_runs_and_resumes(tmp_path: Path) -> None:
    folder, states = tmp_path / "shapes", tmp_path / "states"
    vae = stage(
        *("train_vae", "--minutes", 0.03, "--decoder-minutes", 0.03, "--pool", 60),
        *("--state", states / "vae", "--out", folder / "vae"),
    )
    assert re.search(r"all: \d+ steps .*\ndecoder: \d+ steps .*\nmean absolute error 0\.\d+", vae)

    unet = ["train_unet", "--pool", 40, "--state", states / "unet.pt", "--out", folder]
    assert "2 steps in" in stage(*unet, "--steps", 2)
    assert "4 steps in" in stage(*unet, "--steps", 4)
    before = (folder / "vae" / "diffusion_pytorch_model.safetensors").read_bytes()
    decoder = ["train_decoder", "--pool", 20, "--state", states / "decoder.pt", "--out", folder]
    stage(*decoder, "--steps", 3, "--drawn", 0)  # what is drawn after four steps is never right
    assert (folder / "vae" / "diffusion_pytorch_model.safetensors").read_bytes() != before

    import torch
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True, torch_dtype=torch.float32)
    picture = pipe("a red star", num_inference_steps=2, output_type="np").images[0]
    assert picture.shape == (128, 128, 3)
    assert np.isfinite(picture).all()


@pytest.mark.slow
def test_a_control_net_is_trained_and_resumed(tmp_path: Path) -> None:
    from diffusers import ControlNetModel

    control = [
        "train_control",
        "--pool",
        20,
        "--batch",
        4,
        "--state",
        tmp_path / "control.pt",
        "--out",
        tmp_path / "net",
    ]
    assert "2 steps in" in stage(*control, "--steps", 2)
    assert "4 steps in" in stage(*control, "--steps", 4)
    net = ControlNetModel.from_pretrained(tmp_path / "net", local_files_only=True)
    assert any(parameter.abs().max() > 0 for parameter in net.controlnet_mid_block.parameters())


def test_the_logs_are_those_of_what_ships() -> None:
    last = {file.stem: file.read_text().splitlines()[-1].partition(" in")[0] for file in LOGS.glob("*.log")}
    steps = {"unet": 5000, "unet-2": 7000, "unet-3": 5600, "unet-4": 4500, "unet-5": 1800, "unet-6": 3200}
    steps |= {"decoder": 1800, "decoder-2": 1800, "decoder-3": 1500, "decoder-4": 2500, "decoder-5": 1500}
    steps |= {"control": 2000, "control-2": 2000, "control-3": 2000}
    assert last == {name: f"{count} steps" for name, count in steps.items()}
    told = json.loads((ROOT / "benchmarks" / "results" / "shapes.json").read_text())
    assert f"{100 * told['double/all']:.3g} %" in (ROOT / "benchmarks" / "shapes" / "README.md").read_text()
