"""Pictures of web UIs drawn again, and our text as web UIs read it."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from support.exports import SHAPES

from latentrt.runtime import InputError, Pipeline, TorchGenerator
from latentrt.runtime.cli.main import main
from latentrt.runtime.image import save_png
from latentrt.runtime.request.recorded import recorded_in
from latentrt.runtime.request.web_ui_text import is_web_ui_text, options_of_web_ui, settings_of_web_ui

TEXT = """a (large:1.2) red star, <lora:glow:0.7> sharp
on a blue background
Negative prompt: blurry,
Steps: 30 lines
Steps: 7, Sampler: DPM++ 2M SDE, Schedule type: SGM Uniform, CFG scale: 6.5, Seed: 1234567, Size: 96x64, \
Model hash: 6ce0161689, Model: v1-5-pruned, Clip skip: 2, ENSD: 31337, Eta: 0.6, Lora hashes: "glow: a1, b: c2", \
Variation seed strength: 0.1, Version: v1.10.1"""


def with_text(path: Path, **texts: str) -> Path:
    info = PngInfo()
    for key, value in texts.items():
        info.add_text(key, value)
    Image.new("RGB", (8, 8)).save(path, pnginfo=info)
    return path


def test_settings_of_a_text() -> None:
    settings = settings_of_web_ui(TEXT)
    assert settings["Prompt"] == "a (large:1.2) red star, <lora:glow:0.7> sharp\non a blue background"
    assert settings["Negative prompt"] == "blurry,\nSteps: 30 lines"
    assert (settings["Steps"], settings["Lora hashes"]) == ("7", "glow: a1, b: c2")
    assert settings_of_web_ui("a text without settings") == {}


def test_a_text_of_automatic1111_is_read(caplog: pytest.LogCaptureFixture) -> None:
    assert is_web_ui_text(TEXT)
    options, model, sha256 = options_of_web_ui(TEXT, {"seed": 3})
    assert options == {
        "prompt": "a (large:1.2) red star,  sharp\non a blue background",
        "negative_prompt": "blurry,\nSteps: 30 lines",
        "prompt_syntax": "web-ui",
        "long_prompt": "chunk",
        "num_inference_steps": 7,
        "scheduler": {"name": "dpm++_2m_sde", "schedule_type": "sgm_uniform"},
        "guidance_scale": 6.5,
        "seed": 3,
        "width": 96,
        "height": 64,
        "clip_skip": 1,
        "eta": 0.6,
        "noise_seed_delta": 31337,
        "rng": "cuda",
    }
    assert (model, sha256) == ("v1-5-pruned", "6ce0161689")
    assert "<lora:glow:0.7> in the prompt" in caplog.text
    assert "without effect here: Variation seed strength" in caplog.text
    assert "hashes" not in caplog.text


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ("Sampler: Euler a", {"name": "euler_a", "schedule_type": "normal"}),
        ("Sampler: DPM++ 2M Karras", {"name": "dpm++_2m", "schedule_type": "karras"}),
        ("Sampler: DPM++ 3M SDE, Schedule type: Automatic",
         {"name": "dpm++_3m_sde", "schedule_type": "exponential", "discard_next_to_last": True}),
        ("Sampler: DPM2 a, Schedule type: Normal",
         {"name": "dpm2_a", "schedule_type": "normal", "discard_next_to_last": True}),
        ("Sampler: Heun, Schedule type: Karras, Schedule rho: 5, Sigma churn: 3, Discard penultimate sigma: True",
         {"name": "heun", "schedule_type": "karras", "schedule_rho": 5.0, "s_churn": 3.0,
          "discard_next_to_last": True}),
        ("Sampler: DDIM CFG++, CFG scale: 5",
         {"name": "ddim_cfg_pp", "timestep_spacing": "leading", "steps_offset": 1, "set_alpha_to_one": False}),
        ("Sampler: res_multistep, Schedule type: beta", {"name": "res_multistep", "schedule_type": "beta_timesteps"}),
    ],
)  # fmt: skip
def test_samplers(settings: str, expected: dict[str, Any]) -> None:
    options, _, _ = options_of_web_ui(f"a star\nSteps: 5, {settings}, Seed: 1, RNG: CPU", {})
    assert options["scheduler"] == expected
    assert options["rng"] == "cpu"
    if "cfg_pp" in expected["name"]:
        assert options["guidance_scale"] == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\nSteps: x, Sampler: Euler, Seed: 1", "cannot be read: invalid literal"),
        ("a\nSteps: 5, Sampler: Eulr, Seed: 1", "unknown sampler 'Eulr'; did you mean 'euler'"),
        (
            "a\nSteps: 5, Sampler: DPM adaptive, Seed: 1",
            "model calls is not known before: use 'dpm_fast'",
        ),
        ("a\nSteps: 5, Sampler: Euler, Schedule type: Karas, Seed: 1", "unknown schedule type 'Karas'.*'karras'"),
        ("just a comment", "no text of latentrt or of a web UI"),
    ],
)
def test_what_cannot_be_read_is_told(tmp_path: Path, text: str, message: str) -> None:
    picture = with_text(tmp_path / "a.png", parameters=text)
    with pytest.raises(InputError, match=message):
        recorded_in(picture, {})


def test_a_workflow_of_comfyui_is_told(tmp_path: Path) -> None:
    picture = with_text(tmp_path / "a.png", workflow=json.dumps({"nodes": []}))
    with pytest.raises(InputError, match="the workflows of ComfyUI are not read"):
        recorded_in(picture, {})


@pytest.fixture(scope="module")
def shapes() -> Iterator[Pipeline]:
    with Pipeline.load(SHAPES.bundle, device="cpu", backend="onnxruntime") as pipe:
        yield pipe


def test_a_picture_of_a_web_ui_is_drawn_again(
    shapes: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    with_text(Path("a.png"), parameters=TEXT)
    flags = ["--bundle", str(SHAPES.bundle), "--device", "cpu", "--backend", "onnxruntime"]
    assert main(["generate", "--like", "a.png", *flags, "--save-latents", "b.npy", "-o", "b.png"]) == 0
    assert "a.png was drawn with v1-5-pruned" in caplog.text
    options = options_of_web_ui(TEXT, {})[0]
    drawn = shapes(options.pop("prompt"), **options)
    assert np.array_equal(np.load("b.npy"), drawn.latents)
    assert np.asarray(Image.open("b.png")).shape == (64, 96, 3)


def test_noise_between_calls_comes_from_another_seed(shapes: Pipeline) -> None:
    """As AUTOMATIC1111's ENSD: the first draw between calls is the first of that seed."""
    call: dict[str, Any] = {"num_inference_steps": 2, "height": 32, "width": 32, "output_type": "latent"}
    call |= {"scheduler": "euler_a", "guidance_scale": 1.0}
    first = [
        next(iter(shapes.stream("a star", seed=5, noise_seed_delta=delta, **call))).latents() for delta in (100, 250)
    ]
    draws = [TorchGenerator(5 + delta).randn((1, 4, 4, 4)) for delta in (100, 250)]
    ratio = (first[0] - first[1]) / (draws[0] - draws[1])
    np.testing.assert_allclose(ratio, ratio.mean(), rtol=1e-3)
    assert ratio.mean() > 0.1


def settings_line(text: str) -> dict[str, str]:
    """The regular expression that AUTOMATIC1111's web UI reads settings with."""
    found = re.findall(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)', text.strip().split("\n")[-1])
    return dict(found)


@pytest.mark.parametrize(
    ("scheduler", "sampler", "kind"),
    [
        ("euler_a", "Euler a", None),
        ("dpm++_2m_karras", "DPM++ 2M", "Karras"),
        ("dpm++_3m_sde_exponential", "DPM++ 3M SDE", "Exponential"),
        ("euler_sgm_uniform", "Euler", "SGM Uniform"),
        ({"name": "dpm++_sde", "schedule_type": "kl_optimal"}, "DPM++ SDE", "KL Optimal"),
        ("er_sde_beta_timesteps", "er_sde", "beta"),
        ("ddim_cfg_pp", "DDIM CFG++", None),
        ("unipc", "UniPC", None),
        ("tcd", "tcd", None),
    ],
)
def test_our_text_is_that_of_web_uis(
    shapes: Pipeline, tmp_path: Path, scheduler: Any, sampler: str, kind: str | None
) -> None:
    result = shapes("a star", seed=5, num_inference_steps=2, height=32, width=32, scheduler=scheduler)
    save_png(result.images[0], tmp_path / "a.png")
    settings = settings_line(Image.open(tmp_path / "a.png").text["parameters"])  # type: ignore[attr-defined]
    assert (settings["Sampler"], settings.get("Schedule type")) == (sampler, kind)
    assert settings["Seed"] == "5"


@pytest.mark.parametrize(("scheduler", "scale"), [("euler_a_cfg_pp", 0.72), ("euler_a", 5.5)])
def test_the_scale_is_read_back(shapes: Pipeline, tmp_path: Path, scheduler: str, scale: float) -> None:
    call = {"num_inference_steps": 2, "height": 32, "width": 32}
    save_png(shapes("a star", scheduler=scheduler, guidance_scale=scale, **call).images[0], tmp_path / "a.png")
    text = Image.open(tmp_path / "a.png").text["parameters"]  # type: ignore[attr-defined]
    options, _, _ = options_of_web_ui(text, {})
    assert options["guidance_scale"] == pytest.approx(scale)
