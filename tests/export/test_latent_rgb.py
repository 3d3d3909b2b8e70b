"""The map from latents to RGB that an export fits."""

import numpy as np
import torch
from diffusers import AutoencoderKL
from support.exports import SHAPES, Exported

from benchmarks.shapes import drawings
from latentrt.export.latent_rgb import fit_latent_rgb
from latentrt.runtime.bundle import Bundle
from latentrt.runtime.goldens import psnr
from latentrt.runtime.latents import rgb_from_latents


@torch.inference_mode()
def test_it_predicts_the_colours_of_drawings() -> None:
    """On pictures that it was not fitted to, with diffusers' VAE, against means of its decoder's pixels."""
    vae = AutoencoderKL.from_pretrained(SHAPES.checkpoint / "vae").eval()
    scaling = vae.config.scaling_factor
    fitted = fit_latent_rgb(vae, factor=8, scaling=scaling)
    prompts = ["a large red star on a blue background", "a small green heart and a yellow circle on a white background"]
    pictures = drawings.draw([drawings.scene_from_caption(prompt) for prompt in prompts], np.random.default_rng(8))
    pixels = torch.from_numpy(pictures.astype(np.float32) / 127.5 - 1).permute(0, 3, 1, 2)
    latents = vae.encode(pixels).latent_dist.mean
    decoded = ((vae.decode(latents).sample.clamp(-1, 1) + 1) * 127.5).numpy()
    count, side = len(decoded), decoded.shape[2] // 8
    means = decoded.reshape(count, 3, side, 8, side, 8).mean((3, 5)).transpose(0, 2, 3, 1)
    expected = np.rint(means).astype(np.uint8)
    assert psnr(rgb_from_latents((latents * scaling).numpy(), fitted, factor=1), expected) > 17
    swapped = [row[::-1] for row in fitted]  # blue and red
    assert psnr(rgb_from_latents((latents * scaling).numpy(), swapped, factor=1), expected) < 13
    manifest = Bundle.open(SHAPES.bundle).manifest
    assert manifest.model.latent_rgb is not None
    assert np.allclose(manifest.model.latent_rgb, fitted, atol=1e-4)


def test_bundles_hold_it(sd1: Exported) -> None:
    model = Bundle.open(sd1.bundle).manifest.model
    assert np.shape(model.latent_rgb) == (model.latent_channels + 1, 3)
    assert np.isfinite(model.latent_rgb).all()
