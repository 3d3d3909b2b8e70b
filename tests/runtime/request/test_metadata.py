"""A picture drawn again from its PNG's text: every option, LoRAs, and errors."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from support.exports import SHAPES, Exported
from support.lora_files import shapes_file

from latentrt.runtime import InputError, Pipeline, Plan, TorchGenerator
from latentrt.runtime.cli.main import main
from latentrt.runtime.request.options import OPTIONS, json_options
from latentrt.runtime.request.recorded import recorded_in

SIZE: dict[str, Any] = {"num_inference_steps": 2, "height": 32, "width": 32}
PROMPT = "a (red:1.3) star, " * 12 + "on blue"
DDIM = {"_class_name": "DDIMScheduler", "beta_start": 0.001, "beta_end": 0.02, "clip_sample": False}
# Options of a call, each of which changes the picture; those of SDXL are below.
CALLS: dict[str, dict[str, Any]] = {
    "num_inference_steps": {"num_inference_steps": 3},
    "scheduler": {"scheduler": "euler_a"},
    "guidance_scale": {"guidance_scale": 2.5},
    "rng": {"rng": "cuda"},
    "noise_seed_delta": {"scheduler": "euler_a", "noise_seed_delta": 31337},
    "negative_prompt": {"negative_prompt": "a green heart"},
    "prompt_syntax": {"prompt_syntax": "web-ui"},
    "long_prompt": {"long_prompt": "chunk"},
    "height": {"height": 48},
    "width": {"width": 56},
    "eta": {"scheduler": "ddim", "eta": 0.7},
    "timesteps": {"scheduler": "euler", "num_inference_steps": None, "timesteps": [951, 600, 77]},
    "sigmas": {"scheduler": "euler", "num_inference_steps": None, "sigmas": (11.5, 3.25, 1.0, 0.0)},
    "clip_skip": {"clip_skip": 1},
    "guidance_rescale": {"guidance_rescale": 0.6},
    "guidance_start": {"guidance_start": 0.4, "num_inference_steps": 4},
    "guidance_end": {"guidance_end": 0.5, "num_inference_steps": 4},
    "image": {"image": "photo.png", "strength": 0.7},
    "mask_image": {"image": "photo.png", "mask_image": "mask.png"},
    "strength": {"image": "photo.png", "strength": 0.5, "num_inference_steps": 4},
    "denoising_end": {"denoising_end": 0.5, "num_inference_steps": 4},
    "denoising_start": {
        "image": "latents.npy",
        "denoising_start": 0.4,
        "num_inference_steps": 5,
        "height": 48,
        "width": 64,
    },
    "latents": {"latents": "noise.npy"},
    "hires_scale": {"hires_scale": 1.5},
    "hires_strength": {"hires_scale": 1.0, "hires_strength": 0.7, "num_inference_steps": 4},
    "hires_steps": {"hires_scale": 1.0, "hires_steps": 3},
    "hires_upscaler": {"hires_scale": 2.0, "hires_upscaler": "lanczos"},
    "vae_tiling": {"vae_tiling": True, "height": 160, "width": 176},
    "a config": {"scheduler": DDIM},
    "a name with options": {"scheduler": {"name": "heun", "s_churn": 3.0, "schedule_type": "karras"}},
    "a name with options as text": {"scheduler": "dpm++_sde:schedule_type=sgm_uniform,s_noise=1.1"},
    "a web UI's name": {"scheduler": "DPM++ 3M SDE Karras"},
    "CFG++": {"scheduler": "euler_a_cfg_pp", "guidance_scale": 0.7},
    "a plan": {"scheduler": Plan.from_config(DDIM, 3, eta=0.4), "num_inference_steps": None},
}
NEGATIVE_SIZES = {"negative_original_size": (32, 40), "negative_target_size": (48, 32)}
SDXL: dict[str, dict[str, Any]] = {
    "prompt_2": {"prompt_2": "a blue circle"},
    "negative_prompt_2": {"negative_prompt_2": "a circle", "negative_prompt": "dull"},
    "original_size": {"original_size": (96, 80)},
    "crops_coords_top_left": {"crops_coords_top_left": (3, 5)},
    "target_size": {"target_size": (64, 48)},
    "negative_original_size": {**NEGATIVE_SIZES},
    "negative_target_size": {**NEGATIVE_SIZES, "negative_target_size": (56, 40)},
    "negative_crops_coords_top_left": {**NEGATIVE_SIZES, "negative_crops_coords_top_left": (7, 9)},
}
# Those of SDXL's refiner; `refiner_start` is drawn again in test_passes.py.
REFINER: dict[str, dict[str, Any]] = {
    "aesthetic_score": {"aesthetic_score": 8.5},
    "negative_aesthetic_score": {"negative_aesthetic_score": 0.5},
}
# Options that set the number of pictures and their seeds.
OF_THE_CALL = ("seed", "num_images_per_prompt")
# Options of ControlNets and adapters, see against_diffusers/test_control.py.
OF_CONTROLS = {name for name, option in OPTIONS.items() if option.json and not option.native}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(2).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((32, 32), Image.Resampling.BICUBIC).save("photo.png")
    Image.linear_gradient("L").resize((32, 32)).save("mask.png")
    np.save("noise.npy", np.stack([TorchGenerator(seed).randn((4, 4, 4)) for seed in (31, 32)]))
    np.save("latents.npy", np.stack([TorchGenerator(seed).randn((4, 6, 8)) for seed in (33, 34)]))
    return tmp_path


def drawn_again(bundle: Path, picture: str, *flags: str) -> np.ndarray[Any, Any]:
    command = ["generate", "--like", picture, "--bundle", str(bundle), "--device", "cpu", "-o", "again.png", *flags]
    assert main(command) == 0
    return np.asarray(Image.open("again.png"))


def test_every_option_is_drawn_again_by_a_test() -> None:
    more = {*SDXL, *REFINER, "refiner_start", *OF_THE_CALL, *OF_CONTROLS}
    assert {*CALLS, *more} - {name for name in CALLS if " " in name or name == "CFG++"} == set(json_options())


@pytest.fixture(scope="module")
def shapes() -> Iterator[Pipeline]:
    with Pipeline.load(SHAPES.bundle, device="cpu") as pipe:
        yield pipe


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("name", CALLS)
def test_the_second_picture_of_a_call_is_drawn_again(shapes: Pipeline, name: str) -> None:
    call = {**SIZE, **CALLS[name]}
    second = shapes(PROMPT, seed=5, num_images_per_prompt=2, **call).images[1]
    without = {key: SIZE.get(key) for key in CALLS[name]}
    plain = shapes(PROMPT, seed=6, **{**call, **without}).images[0]
    assert second.size != plain.size or name == "vae_tiling" or not np.array_equal(second, plain)
    second.save("second.png")
    assert np.array_equal(drawn_again(SHAPES.bundle, "second.png"), np.asarray(second))


@pytest.mark.slow
@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("name", SDXL)
def test_sdxl_is_drawn_again(exported: Callable[[str], Exported], name: str) -> None:
    bundle = exported("sdxl-fp32").bundle
    with Pipeline.load(bundle, device="cpu") as pipe:
        picture = pipe("a red star", seed=5, **SIZE, **SDXL[name]).images[0]
    picture.save("a.png")
    assert (
        SDXL[name].items()
        <= {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in recorded_in(Path("a.png"), {}).options.items()
        }.items()
    )
    assert np.array_equal(drawn_again(bundle, "a.png"), np.asarray(picture))


@pytest.mark.slow
@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("name", REFINER)
def test_a_refined_picture_is_drawn_again(exported: Callable[[str], Exported], name: str) -> None:
    bundle = exported("sdxl-refiner-fp32").bundle
    call = {**SIZE, "image": "photo.png", "strength": 0.9}
    with Pipeline.load(bundle, device="cpu") as pipe:
        picture = pipe("a red star", seed=5, **call, **REFINER[name]).images[0]
    picture.save("a.png")
    assert REFINER[name].items() <= recorded_in(Path("a.png"), {}).options.items()
    assert np.array_equal(drawn_again(bundle, "a.png"), np.asarray(picture))


@pytest.mark.usefixtures("folder")
def test_changes_replace_what_is_recorded() -> None:
    with Pipeline.load(SHAPES.bundle, device="cpu") as pipe:
        pipe(PROMPT, seed=5, image="photo.png", strength=0.7, **SIZE).images[0].save("a.png")
        expected = pipe("a green heart", seed=8, image="mask.png", strength=0.7, **SIZE).images[0]
    Path("photo.png").unlink()  # not needed any more
    got = drawn_again(SHAPES.bundle, "a.png", "a green heart", "--seed", "8", "--image", "mask.png")
    assert np.array_equal(got, np.asarray(expected))


@pytest.mark.usefixtures("folder")
def test_loras_of_one_name_are_told_apart(capsys: pytest.CaptureFixture[str]) -> None:
    for seed, name in enumerate("ab"):
        Path(name).mkdir()
        shapes_file(Path(name, "style.safetensors"), seed=seed)
    loras = {"a/style.safetensors": 0.5, "b/style.safetensors": -0.25}
    with Pipeline.load(SHAPES.bundle, device="cpu") as pipe:
        pipe.set_loras(loras)
        picture = pipe(PROMPT, seed=5, **SIZE).images[0]
    picture.save("a.png")
    assert np.array_equal(drawn_again(SHAPES.bundle, "a.png"), np.asarray(picture))
    shutil.copy("a/style.safetensors", "b/style.safetensors")
    assert main(["generate", "--like", "a.png", "--device", "cpu", "-o", "again.png"]) == 1
    error = capsys.readouterr().err
    assert f"was drawn with {Path('b/style.safetensors').absolute()} (sha256 " in error
    assert "which is another file now: pass it with --lora FILE:-0.25" in error


@pytest.mark.usefixtures("folder")
def test_what_cannot_be_drawn_again_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with Pipeline.load(SHAPES.bundle, device="cpu") as pipe:
        pipe(PROMPT, seed=5, image=Image.open("photo.png"), **SIZE).images[0].save("memory.png")
        pipe(PROMPT, seed=5, image="photo.png", **SIZE).images[0].save("file.png")
        embeds = np.zeros((1, 77, 64), np.float32)
        pipe(prompt_embeds=embeds, seed=5, guidance_scale=1, **SIZE).images[0].save("embeds.png")
    Image.open("file.png").transpose(Image.Transpose.ROTATE_180).save("photo.png")
    Image.new("RGB", (8, 8)).save("plain.png")
    Image.new("RGB", (8, 8)).save("plain.jpg")
    info = PngInfo()
    info.add_text("latentrt", json.dumps({"prompt": "a", "loras": {}}))
    Image.new("RGB", (8, 8)).save("older.png", pnginfo=info)
    for picture, message in (
        ("memory.png", "from image an array (sha256 "),
        ("memory.png", "it did not come from a file: pass it with --image FILE"),
        ("file.png", "and it has changed: pass it with --image FILE"),
        ("embeds.png", "was drawn from prompt_embeds, which a PNG does not hold"),
        ("plain.png", "has no text of latentrt"),
        ("plain.jpg", "has no text of latentrt"),
        ("older.png", "is damaged, or from an older version"),
        ("noise.npy", "cannot be read as a PNG file"),
        ("gone.png", "cannot be read as a PNG file"),
    ):
        assert main(["generate", "--like", picture, "--device", "cpu"]) == 1
        assert message in capsys.readouterr().err
    with pytest.raises(InputError, match="drawn from image"):
        recorded_in(Path("file.png"), {"seed": 3})


DAMAGE: list[Any] = [5, "x", [], {}, {"path": 5}, {"path": "p" * 5000}, {"path": "noise.npy", "index": "a"}, 10**400]


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("name", ["image", "mask_image", "latents", "loras", "scheduler", "seed", "prompt", "sigmas"])
def test_damaged_texts_end_in_one_line(shapes: Pipeline, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever stands in a text: an image or an error of ours, and no traceback."""
    shapes("a", seed=5, **SIZE).images[0].save("a.png")
    document = json.loads(Image.open("a.png").info["latentrt"])
    for i, damage in enumerate(DAMAGE):
        info = PngInfo()
        info.add_itxt("latentrt", json.dumps({**document, name: [damage] if name == "loras" else damage}))
        Image.new("RGB", (8, 8)).save(f"{i}.png", pnginfo=info)
        status = main(["generate", "--like", f"{i}.png", "--device", "cpu", "--steps", "1", "-o", "again.png"])
        assert status == 0 or capsys.readouterr().err.count("\n") == 1


@pytest.mark.usefixtures("folder")
def test_wrong_loras_and_padded_texts_are_reported(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, shapes: Pipeline
) -> None:
    lora = str(shapes_file(Path("style.safetensors"), seed=1))
    for flags, message in (
        ([f"{lora}:0.5", f"{lora}:0.3"], "--lora names a file twice"),
        ([f"{lora}:nan"], "has the weight nan: expected a finite number"),
    ):
        words = [word for flag in flags for word in ("--lora", flag)]
        assert main(["generate", "a", "--device", "cpu", *words]) == 1
        assert message in capsys.readouterr().err
    shapes(["a star " * 60, "b"], seed=5, long_prompt="chunk", **SIZE).images[1].save("b.png")
    drawn_again(SHAPES.bundle, "b.png")
    assert "if another text of its call was longer, it was padded to that length" in caplog.text


@pytest.mark.usefixtures("folder")
def test_another_model_is_warned_about(sd1: Exported, caplog: pytest.LogCaptureFixture) -> None:
    with Pipeline.load(sd1.bundle, device="cpu") as pipe:
        pipe("a", seed=5, **SIZE).images[0].save("a.png")
    assert main(["generate", "--like", "a.png", "--device", "cpu", "-o", "again.png"]) == 0
    assert "this bundle holds shapes: the picture will be another" in caplog.text


def test_web_uis_get_the_settings_that_they_know() -> None:
    labels = [option.web_ui[0] for option in OPTIONS.values() if option.web_ui is not None]
    assert labels == [
        *("Steps", "CFG scale", "Seed", "RNG", "ENSD", "Emphasis", "Eta", "Clip skip", "Denoising strength"),
        *("Refiner switch at", "Hires upscale", "Denoising strength", "Hires steps", "Hires upscaler"),
    ]


def test_files_are_found_from_other_folders_and_stay_recorded(
    shapes: Pipeline, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Paths are absolute; an image drawn again records the file and the row of the first."""
    rows = np.random.default_rng(4).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    np.save("stack.npy", rows)
    calls: dict[str, dict[str, Any]] = {
        "latents": {"latents": "noise.npy"},
        "image": {"image": "stack.npy", "strength": 0.7, "num_images_per_prompt": 1},
    }
    (folder / "elsewhere").mkdir()
    for name, call in calls.items():
        prompts = ["a star"] * 3 if name == "image" else "a star"
        last = shapes(prompts, seed=5, **{"num_images_per_prompt": 2, **SIZE, **call}).images[-1]
        last.save(folder / "last.png")
        record = json.loads(last.info["latentrt"])[name]
        assert record["path"] == str(folder / call[name])
        assert record["index"] == (2 if name == "image" else 1)
        with monkeypatch.context() as other:
            other.chdir(folder / "elsewhere")
            again = drawn_again(SHAPES.bundle, str(folder / "last.png"))
            assert np.array_equal(again, np.asarray(last))
            assert json.loads(Image.open("again.png").info["latentrt"])[name] == record
