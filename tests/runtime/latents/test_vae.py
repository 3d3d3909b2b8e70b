"""VAE tiling: the same result as diffusers' tiled VAE, without visible seams."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from support.exports import SHAPES

from latentrt.runtime import Pipeline, TorchGenerator
from latentrt.runtime.goldens import psnr, relative_error

PROMPT = "a large blue circle on an orange background"
SIZE = {"height": 200, "width": 312}  # tiles of 128 pixels: 3 x 4, the last ones smaller


@pytest.fixture(scope="module")
def pipe() -> Iterator[Pipeline]:
    with Pipeline.load(SHAPES.bundle, device="cpu") as pipe:
        yield pipe


@pytest.fixture(scope="module")
def vae() -> Any:
    vae = AutoencoderKL.from_pretrained(SHAPES.checkpoint / "vae").eval()
    vae.enable_tiling()
    return vae


@pytest.fixture(scope="module")
def latents(pipe: Pipeline) -> NDArray[np.float32]:
    result = pipe(PROMPT, seed=5, num_inference_steps=8, output_type="latent", **SIZE)
    return result.latents


def decoded(pipe: Pipeline, latents: NDArray[np.float32], **options: Any) -> NDArray[np.uint8]:
    return pipe._stages.vae.decode(latents, **options)[0][0]


def test_tiles_are_those_of_diffusers(pipe: Pipeline, vae: Any, latents: NDArray[np.float32]) -> None:
    with torch.no_grad():
        pixels = vae.decode(torch.from_numpy(latents) / vae.config.scaling_factor).sample[0]
    expected = ((pixels / 2 + 0.5).clamp(0, 1) * 255).round().permute(1, 2, 0).numpy().astype(np.uint8)
    got = decoded(pipe, latents, tiling=True)
    assert got.shape == (SIZE["height"], SIZE["width"], 3)
    # Each tile is rounded and clipped to bytes before it is blended.
    assert np.mean(np.abs(np.int16(got) - expected) > 1) < 1e-3
    assert psnr(got, expected) >= 50, psnr(got, expected)
    assert psnr(decoded(pipe, latents), expected) < psnr(got, expected) - 3


def test_encoded_tiles_are_those_of_diffusers(pipe: Pipeline, vae: Any) -> None:
    pixels = TorchGenerator(3).randn((1, 152, 264, 3)).clip(-1, 1)
    with torch.no_grad():
        posterior = vae.encode(torch.from_numpy(pixels).permute(0, 3, 1, 2)).latent_dist
    mean, logvar = pipe._stages.vae.encode(pixels, tiling=True)
    assert relative_error(mean, posterior.mean.numpy()) < 1e-4
    assert relative_error(logvar, posterior.logvar.numpy()) < 1e-4
    assert relative_error(pipe._stages.vae.encode(pixels, tiling=False)[0], posterior.mean.numpy()) > 1e-3


def test_no_seams_where_tiles_meet(pipe: Pipeline, latents: NDArray[np.float32]) -> None:
    """Compares pixel differences at seams and elsewhere, relative to a picture decoded without tiling."""
    tiled, whole = (decoded(pipe, latents, tiling=tiling).astype(np.float64) for tiling in (True, False))
    step = np.abs(np.diff(tiled, axis=1) - np.diff(whole, axis=1)).mean(axis=(0, 2))
    seams = [96 * i - 1 for i in (1, 2, 3)]  # the pixel before blending with a new tile starts
    assert step[seams].max() < 2  # levels of 255
    hard = np.concatenate([decoded(pipe, latents[..., i : i + 12]) for i in range(0, 39, 12)], axis=1).astype(
        np.float64
    )
    cut = np.abs(np.diff(hard, axis=1) - np.diff(whole, axis=1)).mean(axis=(0, 2))
    assert cut[seams].mean() > 3 * step[seams].mean()  # without blending, seams are visible


def test_small_pictures_are_made_at_once(pipe: Pipeline) -> None:
    call = {"seed": 2, "num_inference_steps": 2, "output_type": "np"}
    assert np.array_equal(pipe(PROMPT, vae_tiling=True, **call).images, pipe(PROMPT, **call).images)


def test_a_call_in_tiles(pipe: Pipeline) -> None:
    call = {"seed": 2, "num_inference_steps": 2, "output_type": "np", **SIZE}
    tiled, whole = (np.asarray(pipe(PROMPT, vae_tiling=tiling, **call).images)[0] for tiling in (True, False))
    assert tiled.shape == whole.shape
    assert 20 < psnr(tiled, whole) < 60
