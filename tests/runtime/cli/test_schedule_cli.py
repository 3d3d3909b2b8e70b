"""`latentrt schedule`: the table, the plot, and the plan as JSON."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from latentrt.runtime.cli.main import main
from latentrt.runtime.cli.schedule import STABLE_DIFFUSION
from latentrt.runtime.pipeline import embedded_bundle
from latentrt.runtime.scheduler import Plan, resolve, scheduler_names
from latentrt.runtime.scheduler.document import CHECKED_AGAINST, plan_document, residual


def test_table_has_a_line_for_each_call(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schedule", "euler_a", "heun", "--steps", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "euler_a: 3 model calls"
    assert lines[2].split() == ["0", "999", "14.615", "draws"]
    assert [line.split()[-1] for line in lines[2:6]] == ["draws", "draws", "0.029168", "0"]  # the last one is not used
    heun = lines.index("heun: 5 model calls")
    assert [line.split()[1] for line in lines[heun + 2 : heun + 7]] == ["999", "499.5", "499.5", "0", "0"]


def run_as_another_language_would(plan: dict[str, list], noise: np.ndarray) -> np.ndarray:
    """Run the plan from the JSON alone, as sums of products."""
    state = [initial[0] * noise for initial in plan["initial"]]
    for rows, timestep in zip(plan["coefficients"], plan["timesteps"], strict=True):
        column = [*state, np.tanh(state[0] + timestep / 1000), np.zeros_like(noise)]
        state = [sum(c * x for c, x in zip(row, column, strict=True)) for row in rows]
    return state[0]


def test_json_is_a_plan_that_any_language_can_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schedule", "unipc_karras", "--steps", "7", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["format"] == "latentrt.plan/1"
    assert document["checked_against"] == CHECKED_AGAINST
    assert document["scheduler_config"]["_class_name"] == "UniPCMultistepScheduler"
    assert document["scheduler_config"]["use_karras_sigmas"] is True
    assert document["num_inference_steps"] == len(document["timesteps"]) == 7
    assert 0 < document["residual"] < 1e-5
    noise = np.random.default_rng(5).standard_normal(64)
    ours = Plan.from_config(resolve("unipc_karras", STABLE_DIFFUSION), 7).replay(
        lambda x, t: np.tanh(x + float(t) / 1000), noise
    )
    np.testing.assert_allclose(run_as_another_language_would(document, noise), ours, rtol=1e-6, atol=1e-9)


def test_a_plan_may_begin_from_a_picture(capsys: pytest.CaptureFixture[str]) -> None:
    """Steps and noise level match diffusers' image-to-image pipeline."""
    from diffusers import EulerDiscreteScheduler

    assert main(["schedule", "euler", "--steps", "10", "--strength", "0.35", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    scheduler = EulerDiscreteScheduler.from_config(resolve("euler", STABLE_DIFFUSION))
    scheduler.set_timesteps(10)
    assert document["timesteps"] == pytest.approx(scheduler.timesteps[-3:].tolist())
    # The model's input: clean latents and noise, scaled to unit variance.
    sigma = float(scheduler.sigmas[-4])
    assert document["initial"][0] == pytest.approx([sigma / (sigma**2 + 1) ** 0.5, 1 / (sigma**2 + 1) ** 0.5], rel=1e-5)
    assert document["residual"] < 1e-5
    assert main(["schedule", "euler", "--strength", "1.2"]) == 1
    assert "strength=1.2: expected > 0" in capsys.readouterr().err


@pytest.mark.parametrize("name", [name for name in scheduler_names() if not name.endswith("Scheduler")])
def test_every_document_is_strict_json_with_a_small_residual(name: str) -> None:
    config = resolve(name, STABLE_DIFFUSION)
    plan = Plan.from_config(config, 20)
    document = json.loads(json.dumps(plan_document(plan, config, 20), allow_nan=False))
    assert document["residual"] < 2e-5
    assert np.asarray(document["coefficients"]).shape == plan.coefficients.shape


def test_the_version_it_was_checked_against_is_the_one_that_the_tests_run() -> None:
    import diffusers

    assert CHECKED_AGAINST["version"] == diffusers.__version__


def test_residual_sees_a_plan_that_rounding_ruins() -> None:
    good = Plan.from_config(resolve("euler", STABLE_DIFFUSION), 4)
    table = good.coefficients.copy()
    table[1, :2, 0] = 1e6  # two large, equal quantities whose difference the next call takes
    table[2, 0, :2] = 1, -0.9999999
    arrays = good.to_arrays() | {"coefficients": table}
    assert residual(good) < 1e-5 < residual(Plan.from_arrays(arrays))


def test_plot_draws_a_line_for_each_scheduler(tmp_path: Path) -> None:
    file = tmp_path / "sigmas.png"
    assert main(["schedule", "euler", "euler_karras", "ddim", "--steps", "12", "--plot", str(file)]) == 0
    pixels = np.asarray(Image.open(file).convert("RGB")).reshape(-1, 3)
    colours = {tuple(pixel) for pixel in pixels.tolist()}
    assert {(31, 119, 180), (255, 127, 14), (44, 160, 44)} <= colours  # matplotlib's first three


def test_config_files_and_bundles(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "scheduler_config.json"
    file.write_text(json.dumps({"_class_name": "DDIMScheduler", "clip_sample": False, **STABLE_DIFFUSION}))
    assert main(["schedule", str(file), "--steps", "2", "--eta", "1"]) == 0
    assert "draws" in capsys.readouterr().out
    assert main(["schedule", "euler", "--steps", "2", "--bundle", str(embedded_bundle())]) == 0
    assert "4096" in capsys.readouterr().out  # the embedded model was trained with zero terminal SNR


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["eulr"], "unknown scheduler 'eulr'; did you mean 'euler'"),
        (["euler", "ddim", "--json"], "--json writes one plan, not 2"),
        (["euler", "--plot", "sigmas.jpg"], "sigmas.jpg"),
        (["missing.json"], "missing.json cannot be read"),
        (["euler", "--steps", "0"], "num_inference_steps=0"),
    ],
)
def test_errors_are_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schedule", *words]) == 1
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert not captured.out


def test_names_may_have_options_and_steps_may_be_given(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert main(["schedule", "euler:timestep_spacing=trailing,s_noise=1.01", "--steps", "4"]) == 0
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()[2:6]] == ["999", "749", "499", "249"]
    assert main(["schedule", "lcm", "--timesteps", "999,749,499,249"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines[2:6]] == ["999", "749", "499", "249"]
    assert lines[6].split() == ["end", "0"]
    assert main(["schedule", "dpm++_2m", "--sigmas", "14.6,3,0.5,0", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["num_inference_steps"] is None
    assert len(document["timesteps"]) == 3
    assert document["guidance"] == [[0, 1]] * 3
    assert main(["schedule", "er_sde", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["checked_against"]["library"] == "k-diffusion"
    assert main(["schedule", "DPM++ 2M SDE Karras", "--steps", "3"]) == 0
    assert "DPM++ 2M SDE Karras: 3 model calls" in capsys.readouterr().out

    file = tmp_path / "own.json"
    file.write_text(json.dumps({"_class_name": "EulerDiscreteScheduler"}))
    assert main(["schedule", str(file), "--steps", "3"]) == 0
    assert "has no betas, so those of EulerDiscreteScheduler are used: linear from 0.0001 to 0.02" in caplog.text
    assert '{"name": "EulerDiscreteScheduler", …}' in caplog.text


def test_a_picture_is_drawn_with_the_scheduler_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    draw = ["generate", "a star", "--steps", "2", "--height", "32", "--width", "32", "--seed", "1"]
    Path("own.json").write_text(json.dumps({"name": "euler", "schedule_type": "karras"}))
    assert main([*draw, "--scheduler", "own.json", "-o", "a.png"]) == 0
    assert main([*draw, "--scheduler", "euler:schedule_type=karras", "-o", "b.png"]) == 0
    assert main([*draw, "--scheduler", "euler", "-o", "c.png"]) == 0
    pixels = [np.asarray(Image.open(f"{name}.png")) for name in "abc"]
    assert np.array_equal(pixels[0], pixels[1])
    assert not np.array_equal(pixels[0], pixels[2])
    assert main(["schedule", "euler", "--steps", "3", "--json"]) == 0
    Path("list.json").write_text("[]")
    assert main([*draw, "--scheduler", "list.json", "-o", "d.png"]) == 1
    assert main([*draw, "--scheduler", "missing.json", "-o", "d.png"]) == 1
