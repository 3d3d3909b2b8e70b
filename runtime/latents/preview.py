"""Previews of latents by a linear map to RGB, without the VAE."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from latentrt.runtime.arrays import Float32

PREVIEWS = ("auto", "rgb", "taesd", "vae")  # methods of `Step.preview`


def rgb_from_latents(latents: Float32, latent_rgb: Sequence[Sequence[float]], *, factor: int) -> NDArray[np.uint8]:
    """(images, C, h, w) latents to (images, factor*h, factor*w, 3) bytes, each latent pixel one colour.

    Args:
        latent_rgb: (C + 1, 3), from a latent pixel and 1 to RGB in [0, 1]; `model.latent_rgb` of the manifest.
        factor: pixels per latent pixel.
    """
    matrix = np.asarray(latent_rgb, np.float32)
    colours = np.moveaxis(latents, 1, -1) @ matrix[:-1] + matrix[-1]
    small = np.nan_to_num(np.rint(np.clip(colours, 0, 1) * 255)).astype(np.uint8)
    images: NDArray[np.uint8] = small.repeat(factor, axis=1).repeat(factor, axis=2)
    return images
