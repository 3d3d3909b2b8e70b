"""Checkpoints with an AutoencoderTiny (TAESD) against diffusers' pipelines: its encoder takes no draw of a seed."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny
from support.exports import Exported
from support.references import DRAWS, SD, TASKS, agrees, expected, task_options

from latentrt.runtime import Pipeline
from latentrt.runtime.bundle import Bundle
from latentrt.runtime.goldens import psnr, relative_error, verify_goldens
from latentrt.runtime.latents import Vae, vae_tiling

PROMPT, LATENTS = "a lighthouse in a storm, oil painting", 1e-5
# It draws at every call, so that a draw too many would change the picture.
ANCESTRAL = {
    "_class_name": "EulerAncestralDiscreteScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "timestep_spacing": "leading",
    "steps_offset": 1,
}
CALL: dict[str, Any] = {
    "prompt": PROMPT,
    "negative_prompt": "fog",
    "num_inference_steps": 6,
    "guidance_scale": 4.0,
    "scheduler": ANCESTRAL,
}
CASES = [
    *(("sd1-taesd-fp32", task, "onnxruntime") for task in TASKS),
    *(("sd1-taesd-fp32", task, "openvino") for task in TASKS),
    *(("sd1-inpaint-taesd-fp32", "inpaint", backend) for backend in ("onnxruntime", "openvino")),
]


@pytest.mark.parametrize(("name", "task", "backend"), CASES)
def test_same_picture_as_diffusers(exported: Callable[[str], Exported], name: str, task: str, backend: str) -> None:
    case = exported(name)
    with Pipeline.load(case.bundle, backend=backend, device="cpu") as pipe:
        for seed, size in DRAWS:
            options = CALL | task_options(task, size)
            wanted = expected(case.checkpoint, SD[TASKS.index(task)], seed, **options)
            assert wanted[1].std() > 15, "a picture that is almost grey would prove little"
            assert agrees(pipe, wanted, latents=LATENTS, seed=seed, **options), (seed, size)
        assert not agrees(pipe, wanted, latents=LATENTS, seed=seed + 1, **options)


def _as_moments(encode: Callable[..., Any]) -> Callable[..., Any]:
    """The encoder with a deviation of almost nothing, which takes draws all the same."""

    def moments(vae: Vae, pixels: Any) -> tuple[Any, Any]:
        mean, logvar = encode(vae, pixels)
        assert logvar is None
        return mean, np.full_like(mean, -30)

    return moments


@pytest.mark.parametrize("task", TASKS[1:])
def test_drawing_as_if_it_sampled_fails(
    exported: Callable[[str], Exported], task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, (seed, size) = exported("sd1-taesd-fp32"), DRAWS[0]
    options = CALL | task_options(task, size)
    wanted = expected(case.checkpoint, SD[TASKS.index(task)], seed, **options)
    with Pipeline.load(case.bundle, device="cpu") as pipe:
        assert agrees(pipe, wanted, latents=LATENTS, seed=seed, **options)
        monkeypatch.setattr(Vae, "_encode", _as_moments(Vae._encode))
        assert not agrees(pipe, wanted, seed=seed, **options)


def test_large_pictures_in_tiles(exported: Callable[[str], Exported], monkeypatch: pytest.MonkeyPatch) -> None:
    """With tiles of diffusers' size. The network sees less far than tiles overlap, so that only blending shows."""
    case = exported("sd1-taesd-fp32")
    vae = AutoencoderTiny.from_pretrained(case.checkpoint / "vae").eval()
    with Pipeline.load(case.bundle, device="cpu") as pipe:
        model = pipe.bundle.manifest.model
        assert model.vae_tile * model.vae_scale_factor == vae.tile_sample_min_size
        side = model.vae_tile + 88
        latents = np.random.default_rng(5).standard_normal((1, 4, side, 60), np.float32)
        pixels = np.random.default_rng(6).uniform(-1, 1, (1, 2 * side, 120, 3)).astype(np.float32)
        with torch.inference_mode():
            encoded = vae.encode(torch.from_numpy(pixels).permute(0, 3, 1, 2)).latents.numpy()
        tiled = Vae(model, pipe.run)
        mean, logvar = tiled.encode(pixels, tiling=True)
        images, bad = tiled.decode(latents, tiling=True)
        assert (logvar, bad.tolist()) == (None, [0])
        assert relative_error(mean, encoded) < 2e-3
        assert psnr(images, _decoded(vae, torch.from_numpy(latents))) > 60
        monkeypatch.setattr(vae_tiling, "OVERLAP", 0.0)
        assert relative_error(tiled.encode(pixels, tiling=True)[0], encoded) > 2e-2
        assert psnr(tiled.decode(latents, tiling=True)[0], images) < 50


def test_previews_are_those_of_the_given_decoder(exported: Callable[[str], Exported]) -> None:
    case = exported("sd1-taesd-fp32")
    preview_vae = AutoencoderTiny.from_pretrained(case.preview_vae).eval()
    own_vae = AutoencoderTiny.from_pretrained(case.checkpoint / "vae").eval()
    with Pipeline.load(case.bundle, device="cpu") as pipe:
        for step in pipe.stream(**CALL, seed=[4, 9], num_images_per_prompt=2, height=40, width=56):
            shown = {method: np.stack(step.preview(method)) for method in ("auto", "taesd", "vae", "rgb")}
        assert step.result is not None
        latents = torch.from_numpy(step.result.latents)  # at the end, what is predicted is what is there
    assert np.array_equal(shown["auto"], shown["taesd"])
    assert psnr(shown["taesd"], _decoded(preview_vae, latents)) > 50
    assert psnr(shown["vae"], _decoded(own_vae, latents)) > 50
    assert psnr(shown["vae"], shown["taesd"]) < 30
    assert psnr(shown["rgb"], shown["taesd"]) < 30


@torch.inference_mode()
def _decoded(vae: AutoencoderTiny, latents: torch.Tensor) -> np.ndarray:
    pixels = vae.decode(latents / vae.config.scaling_factor).sample.permute(0, 2, 3, 1)
    return np.rint((pixels / 2 + 0.5).clamp(0, 1).numpy() * 255).astype(np.uint8)


@pytest.mark.parametrize("name", ["sd1-taesd-fp32", "sd1-inpaint-taesd-fp32", "sdxl-taesd-fp16"])
def test_goldens_are_reproduced(exported: Callable[[str], Exported], name: str) -> None:
    bundle = exported(name).bundle
    manifest = Bundle.open(bundle).manifest
    assert manifest.recipe.vae_precision == manifest.recipe.precision  # also of SDXL: this VAE does not overflow
    assert [spec.name for spec in manifest.graphs["vae_encoder"].outputs] == ["mean"]
    with Pipeline.load(bundle, device="cpu") as pipe:
        checks = verify_goldens(pipe)
    assert [check.name for check in checks][-2:] == ["image", "preview"]
    assert all(check.passed for check in checks), checks
    assert not any(parameter.startswith("preview_vae") for parameter in manifest.weights)


def test_another_preview_fails_its_golden(exported: Callable[[str], Exported]) -> None:
    bundle = exported("sd1-taesd-fp32").bundle
    with Pipeline.load(bundle, device="cpu") as pipe:
        run = pipe.run
        pipe.run = lambda graph, inputs, layers=None: run(  # type: ignore[method-assign]
            "vae_decoder" if graph == "preview_decoder" else graph, inputs, layers
        )
        checks = {check.name: check.passed for check in verify_goldens(pipe)}
    assert [name for name, passed in checks.items() if not passed] == ["preview"]
