"""Pictures by C++ and by Python from the same bundles, on the same engine: the same latents, pictures and texts."""

import ctypes
import functools
import io
import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from support.exports import SHAPES, Exported
from support.native import INPUT, SCHEDULER, UNEQUAL, Drawn, NativeError, NativePipeline, Text, check, library

from latentrt.runtime import Pipeline
from latentrt.runtime.drawing import Result
from latentrt.runtime.goldens import psnr, relative_error
from latentrt.runtime.scheduler import Plan, resolve
from latentrt.runtime.scheduler.document import plan_document

PROMPT = "a large yellow heart on a green background"


def random_picture(height: int, width: int, channels: int = 3, seed: int = 5) -> NDArray[np.uint8]:
    """Smooth noise, so that a resized picture keeps its content."""
    noise = np.random.default_rng(seed).integers(0, 256, (8, 8, channels), dtype=np.uint8)
    image = Image.fromarray(noise[:, :, 0] if channels == 1 else noise).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    return np.asarray(image)


def unit_noise(*shape: int) -> NDArray[np.float32]:
    """Noise to start from."""
    return np.random.default_rng(3).normal(size=shape).astype(np.float32)


def half_mask(height: int, width: int) -> NDArray[np.uint8]:
    """White where the picture is drawn anew: its right part."""
    mask = np.zeros((height, width), np.uint8)
    mask[:, width // 3 :] = 255
    return mask


def assert_equal(drawn: Drawn, expected: Result, texts: list[dict[str, str]]) -> None:
    """Latents to 1e-4, pictures to 50 dB, the same seeds, and texts to the byte."""
    assert drawn.seeds == list(expected.seeds)
    for got, wanted in zip(drawn.latents, expected.latents, strict=True):
        assert relative_error(got, wanted) <= 1e-4
    for i, pixels in enumerate(drawn.pixels):
        assert psnr(pixels, np.asarray(expected.images[i])) >= 50
        file = Image.open(io.BytesIO(drawn.files[i]))
        assert isinstance(file.text, dict)  # type: ignore[attr-defined]
        assert file.text == drawn.texts[i]  # type: ignore[attr-defined]
        np.testing.assert_array_equal(np.asarray(file), pixels)
    assert drawn.texts == texts


@functools.lru_cache(maxsize=1)
def both(bundle: Path) -> tuple[Pipeline, NativePipeline]:
    """The pipelines of one bundle, kept for the next test."""
    return Pipeline.load(bundle, backend="onnxruntime", device="cpu"), NativePipeline(bundle)


def compare(bundle: Path, prompt: Any = PROMPT, **options: Any) -> Drawn:
    """Draw by both, and compare."""
    pipe, native = both(bundle)
    given = dict(options)
    if "image_latents" in given:
        given["image"] = given.pop("image_latents")
    drawn = native.draw(prompt, **options)
    assert_equal(drawn, pipe(prompt, **given), pipe.png_texts(prompt, **given))
    return drawn


@pytest.mark.parametrize(
    ("scheduler", "steps", "seed", "guidance", "height", "width"),
    [
        ("euler", 7, 3, 2.5, 128, 128),
        # Noise between calls, a seed of more than 32 bits, and a noise size that is not a multiple of 16.
        ("euler_a", 6, 2**40 + 5, 4.0, 72, 88),
        # No guidance, two calls a step.
        ("heun", 4, 11, 1.0, 64, 128),
        ("ddim", 9, 2**64 - 1, 7.0, 64, 64),
        ("dpm++_2m", 5, 5, 2.0, 64, 64),
        ("dpm++_2m_karras", 8, 8, 3.0, 64, 96),
        ("dpm++_2m_sde_karras", 6, 17, 3.0, 64, 64),
        ("unipc", 6, 6, 0.7, 64, 64),
        (None, 5, 9, 5.5, 64, 64),
    ],
)
def test_schedulers(scheduler: str | None, steps: int, seed: int, guidance: float, height: int, width: int) -> None:
    options: dict[str, Any] = {"num_inference_steps": steps, "seed": seed, "guidance_scale": guidance}
    if scheduler is not None:
        options["scheduler"] = scheduler
    compare(SHAPES.bundle, height=height, width=width, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"negative_prompt": "a circle", "clip_skip": 1, "guidance_rescale": 0.6},
        {"prompt": "a (large:1.4) [red] star, ((small)) BREAK on a blue background", "prompt_syntax": "web-ui"},
        {"prompt": "a star, " * 40, "long_prompt": "chunk", "negative_prompt": "a green circle"},
        {"prompt": "a star, " * 40, "num_images_per_prompt": 2},
        {"rng": "cuda", "noise_seed_delta": 31337, "scheduler": "euler_a"},
        {"guidance_start": 0.3, "guidance_end": 0.8},
        {"prompt": ["a circle", "a red star"], "negative_prompt": ["a star", "a square"], "num_images_per_prompt": 2},
        {"prompt": 'Ünïcodé 星 "quoted", back\\slash \U0001f600', "negative_prompt": "two\nlines"},
        {"output_type": "latent"},
        {"seed": [5, 900], "prompt": ["a circle", "a heart"]},
        {"vae_tiling": True, "height": 192, "width": 160},
    ],
    ids=lambda options: "-".join(options),
)
def test_options(options: dict[str, Any]) -> None:
    given = {"num_inference_steps": 4, "seed": 21, "height": 64, "width": 64, "guidance_scale": 3.0, **options}
    compare(SHAPES.bundle, given.pop("prompt", PROMPT), **given)


@pytest.mark.parametrize(
    "options",
    [
        {"image": random_picture(64, 64)},
        # Another size than the call's, and a strength that floating point rounds.
        {"image": random_picture(100, 75), "height": 64, "width": 96, "strength": 0.7 * 0.1 + 0.2},
        {"image": random_picture(72, 80), "strength": 1.0, "scheduler": "euler_a"},
        {"image": random_picture(64, 64), "mask_image": half_mask(64, 64), "strength": 0.8},
        {"image": random_picture(130, 70), "mask_image": half_mask(65, 50), "height": 64, "width": 64},
        {"image": random_picture(64, 64), "mask_image": half_mask(64, 64), "strength": 1.0, "scheduler": "ddim"},
        {"image": random_picture(64, 64, 4), "strength": 0.5, "num_images_per_prompt": 2},
        {"image": random_picture(64, 64, 1), "strength": 0.5, "rng": "cuda"},
        {"image_latents": unit_noise(1, 4, 8, 8), "strength": 0.4},
        {"latents": unit_noise(1, 4, 8, 8), "scheduler": "euler"},
    ],
    ids=lambda options: "-".join(options),
)
def test_pictures_and_latents_as_input(options: dict[str, Any]) -> None:
    given = {"num_inference_steps": 7, "seed": 4, "guidance_scale": 2.5, **options}
    if {"image_latents", "latents"} & options.keys():
        given |= {"height": 64, "width": 64}
    compare(SHAPES.bundle, PROMPT, **given)


@pytest.mark.parametrize(
    "options",
    [
        {"image": random_picture(48, 40), "strength": 0.6},
        {"image": random_picture(48, 40), "mask_image": half_mask(48, 40), "strength": 0.7},
    ],
    ids=lambda options: "-".join(options),
)
def test_vaes_without_a_distribution(exported: Callable[[str], Exported], options: dict[str, Any]) -> None:
    """TAESD takes no draw of the seed; a decoder for previews is there, and not used."""
    bundle = exported("sd1-taesd-fp32").bundle
    compare(bundle, PROMPT, num_inference_steps=5, seed=4, guidance_scale=2.5, scheduler="euler_a", **options)
    assert both(bundle)[1].verify().psnr >= 50


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("sd1-fp32", {"scheduler": "euler", "clip_skip": 1}),
        # The noise is given: that of a seed differs by a last bit here and there, which float16 makes larger.
        ("sd2-fp16", {"scheduler": "dpm++_2m_karras", "latents": unit_noise(1, 4, 32, 32)}),
        ("sd2-fp32-opset18", {"image": random_picture(64, 64), "strength": 0.6}),
        ("sdxl-fp32", {"negative_prompt": "noise", "prompt_2": "another text", "crops_coords_top_left": (8, 16)}),
        ("sdxl-fp32", {"image": random_picture(64, 64), "mask_image": half_mask(64, 64), "strength": 0.7}),
        ("sdxl-v-fp32", {"original_size": (512, 640), "negative_original_size": (64, 64),
                         "negative_target_size": (32, 96), "long_prompt": "chunk"}),
        ("sd1-inpaint-fp32", {"image": random_picture(80, 64), "mask_image": half_mask(80, 64)}),
        ("sd1-inpaint-fp32", {"image": random_picture(64, 64), "mask_image": half_mask(64, 64), "strength": 0.45}),
        ("lcm-fp32", {"guidance_scale": 8.0, "num_inference_steps": 4}),
        ("lcm-fp32", {"image": random_picture(64, 64), "strength": 0.5, "num_inference_steps": 3}),
    ],
)  # fmt: skip
def test_families(name: str, options: dict[str, Any], exported: Callable[[str], Exported]) -> None:
    """SD 1, SD 2, SDXL, UNets that inpaint, and models that were distilled."""
    given = {"num_inference_steps": 5, "seed": 40, "height": 64, "width": 64, **options}
    if "image" in options:
        del given["height"], given["width"]
    compare(exported(name).bundle, "a fox, " * 30 if "long_prompt" in options else "a fox in the snow", **given)


def test_scales_of_one_batch() -> None:
    """Each image as if it were drawn alone, also where one of them is not guided."""
    scales = [1.0, 3.0, 7.5]
    _, native = both(SHAPES.bundle)
    options: dict[str, Any] = {"num_inference_steps": 5, "height": 64, "width": 64}
    together = native.draw(PROMPT, seed=70, num_images_per_prompt=3, guidance_scale=scales, **options)
    for i, scale in enumerate(scales):
        alone = native.draw(PROMPT, seed=70 + i, guidance_scale=scale, **options)
        assert relative_error(together.latents[i], alone.latents[0]) <= 1e-4
        assert together.texts[i] == alone.texts[0]


def test_steps_and_previews() -> None:
    seen: list[tuple[int, int]] = []
    previews: list[NDArray[np.uint8]] = []

    def on_step(step: Any) -> bool:
        lib, handle = library(), ctypes.c_void_p(step)
        seen.append((lib.latentrt_step_index(handle), lib.latentrt_step_total(handle)))
        pixels, height, width, error = (ctypes.c_void_p(), ctypes.c_int32(), ctypes.c_int32(), ctypes.c_void_p())
        for method in (1, 2):
            assert not lib.latentrt_step_preview(
                handle, ctypes.c_size_t(0), method, ctypes.byref(pixels), ctypes.byref(height), ctypes.byref(width),
                ctypes.byref(error),
            )  # fmt: skip
            shape = (height.value, width.value, 3)
            assert pixels.value is not None
            previews.append(np.frombuffer(ctypes.string_at(pixels.value, int(np.prod(shape))), np.uint8).reshape(shape))
        return True

    options: dict[str, Any] = {"num_inference_steps": 4, "seed": 2, "height": 64, "width": 72}
    pipe, native = both(SHAPES.bundle)
    native.draw(PROMPT, on_step=on_step, **options)
    expected = [
        image for step in pipe.stream(PROMPT, **options) for method in ("rgb", "vae") for image in step.preview(method)
    ]
    assert seen == [(i, 4) for i in range(4)]
    for got, wanted in zip(previews, expected, strict=True):
        assert psnr(got, np.asarray(wanted)) >= 50


def test_a_plan_of_the_caller() -> None:
    """Any scheduler of Python, as a document: here one with custom sigmas."""
    pipe, native = both(SHAPES.bundle)
    config = resolve("euler", pipe.bundle.read_json(pipe.bundle.manifest.scheduler))
    plan = Plan.from_config(config, sigmas=[9.0, 3.0, 1.0, 0.25, 0.0])
    expected = pipe(PROMPT, scheduler=plan, seed=6, height=64, width=64)
    texts = pipe.png_texts(PROMPT, scheduler=plan, seed=6, height=64, width=64)
    document = json.dumps(plan_document(plan, config, None)).encode()
    handle, error = ctypes.c_void_p(), ctypes.c_void_p()
    check(library().latentrt_plan_from_memory(document, ctypes.c_size_t(len(document)), ctypes.byref(handle),
                                              ctypes.byref(error)), error)  # fmt: skip
    drawn = native.draw(PROMPT, plan=handle, seed=6, height=64, width=64)
    with pytest.raises(NativeError, match="a compiled plan has its steps") as refused:
        native.draw(PROMPT, plan=handle, num_inference_steps=4)
    assert refused.value.status == INPUT
    library().latentrt_plan_free(handle)
    assert_equal(drawn, expected, texts)


@pytest.mark.parametrize("name", ["shapes", pytest.param("sdxl-fp32", marks=pytest.mark.slow)])
def test_goldens(name: str, request: pytest.FixtureRequest) -> None:
    bundle = SHAPES.bundle if name == "shapes" else request.getfixturevalue("exported")(name).bundle
    with NativePipeline(bundle) as native:
        found = native.verify()
    assert found.ids_equal == 1
    assert found.latents_error <= found.latents_tolerance
    assert found.psnr >= found.psnr_floor


@pytest.mark.parametrize("fault", ["wrong row", "wrong plan", "tokens off by one"])
def test_planted_faults_are_found(fault: str, tmp_path: Path) -> None:
    """Another row of the golden plan, another plan, other tokens: the golden outputs are not reached."""
    from safetensors.numpy import load_file, save_file

    folder = tmp_path / "planted"
    shutil.copytree(SHAPES.bundle, folder)
    file = folder / "golden" / "golden.safetensors"
    arrays: dict[str, NDArray[Any]] = load_file(file)
    if fault == "wrong row":
        arrays["plan.coefficients"][3] = arrays["plan.coefficients"][4]
    elif fault == "wrong plan":
        arrays["plan.timesteps"] = arrays["plan.timesteps"] * np.float32(0.9)
    else:
        arrays["input_ids"] = np.roll(arrays["input_ids"], 1, axis=1)
    save_file(arrays, file)
    with NativePipeline(folder) as native, pytest.raises(NativeError, match="not the golden ones") as refused:
        native.verify()
    assert refused.value.status == UNEQUAL


def test_plans_of_another_checkpoint_are_refused(tmp_path: Path) -> None:
    """A pack says what noise its checkpoint was trained with."""
    other = tmp_path / "other"
    shutil.copytree(SHAPES.bundle, other)
    file = other / "scheduler" / "scheduler_config.json"
    changed = file.read_text().replace('"beta_end": 0.012', '"beta_end": 0.015')
    assert len(changed) == file.stat().st_size
    file.write_text(changed)
    with pytest.raises(NativeError, match=r"another checkpoint: its beta_end is '0\.012', and this one's '0\.015'"):
        NativePipeline(other)


REFUSED: Mapping[str, tuple[dict[str, Any], int, str]] = {
    "scheduler": ({"scheduler": "eular"}, SCHEDULER, "eular"),
    "plan": ({"num_inference_steps": 999, "scheduler": "euler"}, SCHEDULER, "latentrt plans"),
    "steps": ({"num_inference_steps": -1}, INPUT, "num_inference_steps=-1: expected an integer from 1 to 10000"),
    "height": ({"height": 100}, INPUT, "height=100: expected a multiple of 8; the nearest are 96 and 104"),
    "rescale": ({"guidance_rescale": 1.5}, INPUT, "guidance_rescale=1.5: expected a number from 0 to 1"),
    "interval": ({"guidance_start": 0.5, "guidance_end": 0.5}, INPUT, "expected guidance_start < guidance_end"),
    "strength": ({"strength": 0.5}, INPUT, "pass images, or leave it out"),
    "mask": ({"mask_image": half_mask(64, 64)}, INPUT, "images"),
    "seeds": ({"seed": [1, 2]}, INPUT, "2 seeds for 1 images"),
    "latents": ({"latents": np.zeros((1, 4, 9, 9), np.float32)}, INPUT, "latents"),
    "sizes": ({"original_size": (64, 64)}, INPUT, "only SDXL"),
    "prompt_2": ({"prompt_2": "x"}, INPUT, "two text encoders"),
    "negatives": ({"negative_prompt": ["a", "b"]}, INPUT, "2 entries for 1 prompts"),
    "images": ({"num_images_per_prompt": 1025}, INPUT, "1024"),
    "pixels": ({"num_images_per_prompt": 1024, "height": 1024, "width": 1024}, INPUT, "LATENTRT_MAX_PIXELS"),
    "text": ({"prompt": b"\xff\xfe".decode("utf-8", "surrogateescape")}, INPUT, "UTF-8"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what was given and what is allowed; the pipeline draws on."""
    _, native = both(SHAPES.bundle)
    options, status, text = REFUSED[name]
    given = {"num_inference_steps": 2, "height": 64, "width": 64, **options}
    prompt = given.pop("prompt", PROMPT)
    if name == "text":
        monkeypatch.setattr("support.native._text", _raw_text)
    with pytest.raises(NativeError, match=re.escape(text)) as refused:
        native.draw(prompt, **given)
    assert refused.value.status == status


def _raw_text(given: str) -> Any:
    data = given.encode("utf-8", "surrogateescape")
    return Text(data, len(data))
