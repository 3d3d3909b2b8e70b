"""Fit a linear map from latents to RGB, for previews without the VAE decoder."""

from typing import Any

import numpy as np
import torch

from latentrt.export.graphs.vae import VAEDecoderGraph, VAEEncoderGraph

IMAGES, SIDE, CELLS = 12, 16, 4  # SIDE in latent pixels; CELLS of random colour along each side


def fit_latent_rgb(vae: Any, *, factor: int, scaling: float) -> tuple[tuple[float, ...], ...]:
    """Fit the map (C + 1, 3) from [latent pixel, 1] to RGB in [0, 1] by least squares on smooth random images.

    The target of a latent pixel is the mean colour of the `factor` by `factor` pixels that it decodes to.

    Args:
        vae: the VAE in float32.
        factor: image pixels per latent pixel.
        scaling: the scaling factor from the encoder graph's moments to the UNet's latents.
    """
    encoded = VAEEncoderGraph(vae)(_smooth_images(SIDE * factor))
    latents = (encoded if isinstance(encoded, torch.Tensor) else encoded[0]) * scaling
    images, _ = VAEDecoderGraph(vae)(latents)
    cells = images.numpy().astype(np.float64).reshape(IMAGES, SIDE, factor, SIDE, factor, 3).mean((2, 4)) / 255
    rows = latents.permute(0, 2, 3, 1).reshape(-1, latents.shape[1]).numpy().astype(np.float64)
    ones = np.ones((len(rows), 1))
    fitted = np.linalg.lstsq(np.hstack([rows, ones]), cells.reshape(-1, 3), rcond=None)[0]
    return tuple(tuple(float(value) for value in row) for row in np.asarray(np.round(fitted, 5)))


def _smooth_images(side: int) -> torch.Tensor:
    """Random images (n, side, side, 3) in [-1, 1]."""
    colours = np.random.default_rng(6).uniform(-1, 1, (IMAGES, 3, CELLS, CELLS)).astype(np.float32)
    smooth = torch.nn.functional.interpolate(torch.from_numpy(colours), (side, side), mode="bicubic")
    return smooth.clamp(-1, 1).permute(0, 2, 3, 1)
