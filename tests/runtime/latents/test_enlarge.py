"""Latents and pictures enlarged as PyTorch and Pillow do."""

import numpy as np
import pytest
import torch
from PIL import Image

from latentrt.runtime.latents import UPSCALERS, enlarged_latents, enlarged_pictures, enlarges_latents

MODES = {
    "latent": "bilinear",
    "latent-bicubic": "bicubic",
    "latent-nearest": "nearest",
    "latent-nearest-exact": "nearest-exact",
}
FILTERS = {"lanczos": Image.Resampling.LANCZOS, "nearest": Image.Resampling.NEAREST}


def test_every_upscaler_is_tested() -> None:
    assert {*MODES, *FILTERS} == {*UPSCALERS}
    assert all(enlarges_latents(name) == (name in MODES) for name in UPSCALERS)


@pytest.mark.parametrize("upscaler", MODES)
@pytest.mark.parametrize("size", [(11, 6), (22, 12), (17, 13), (33, 7), (12, 47), (1, 1)])
def test_latents_are_those_of_pytorch(upscaler: str, size: tuple[int, int]) -> None:
    latents = np.random.default_rng(8).standard_normal((3, 4, 11, 6)).astype(np.float32)
    got = enlarged_latents(latents, upscaler, *size)
    wanted = {
        mode: torch.nn.functional.interpolate(torch.from_numpy(latents), size=size, mode=mode).numpy()
        for mode in MODES.values()
    }
    assert got.dtype == np.float32
    assert np.abs(got - wanted[MODES[upscaler]]).max() < 1e-5
    if size == (17, 13):
        others = [mode for mode in wanted if mode != MODES[upscaler]]
        assert all(np.abs(got - wanted[mode]).max() > 0.1 for mode in others)


def test_antialiasing_changes_nothing_where_latents_grow() -> None:
    """So that what web UIs call antialiased is the same."""
    latents = np.random.default_rng(9).standard_normal((1, 4, 7, 9)).astype(np.float32)
    wanted = torch.nn.functional.interpolate(
        torch.from_numpy(latents), size=(15, 13), mode="bilinear", antialias=True
    ).numpy()
    assert np.abs(enlarged_latents(latents, "latent", 15, 13) - wanted).max() < 1e-5


@pytest.mark.parametrize("upscaler", FILTERS)
def test_pictures_are_those_of_pillow(upscaler: str) -> None:
    pictures = np.random.default_rng(10).integers(0, 256, (2, 12, 20, 3), dtype=np.uint8)
    got = enlarged_pictures(pictures, upscaler, 30, 44)
    for row, picture in zip(got, pictures, strict=True):
        wanted = np.asarray(Image.fromarray(picture).resize((44, 30), FILTERS[upscaler]))
        assert np.array_equal(np.rint((row + 1) * 127.5).astype(np.uint8), wanted)
