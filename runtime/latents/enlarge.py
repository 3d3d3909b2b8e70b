"""Enlarges latents and pictures for a second pass, as PyTorch's `interpolate` and Pillow do.

Knows arrays; knows nothing of requests or of what draws them.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentrt.runtime.arrays import Float32

from .resize import resized_image

Matrix = NDArray[np.float64]  # (new, old): what each new value takes from each old one


def _at(old: int, new: int) -> NDArray[np.float64]:
    """(new,): where the centre of each new value lies among the old ones, counted from 0."""
    return np.asarray((np.arange(new) + 0.5) * (old / new) - 0.5, np.float64)


def _chosen(old: int, rows: NDArray[Any]) -> Matrix:
    return np.asarray(np.eye(old)[np.clip(rows, 0, old - 1).astype(int)])


def _nearest(old: int, new: int) -> Matrix:
    """PyTorch's mode "nearest": the old value at or before the upper edge."""
    return _chosen(old, np.floor(np.arange(new, dtype=np.float32) * np.float32(old / new)))  # its float32 decides ties


def _nearest_exact(old: int, new: int) -> Matrix:
    middle = np.arange(new, dtype=np.float32) + np.float32(0.5)
    return _chosen(old, np.floor(middle * np.float32(old / new)))


def _bilinear(old: int, new: int) -> Matrix:
    at = np.maximum(_at(old, new), 0)
    share = (at - np.floor(at))[:, None]
    return (1 - share) * _chosen(old, np.floor(at)) + share * _chosen(old, np.floor(at) + 1)


def _bicubic(old: int, new: int) -> Matrix:
    """Keys' cubic convolution with a = -0.75 (IEEE ASSP 29, 1981); values beyond the edge repeat it."""
    a, at = -0.75, _at(old, new)
    share, result = at - np.floor(at), np.zeros((new, old))
    for offset in (-1, 0, 1, 2):
        x = np.abs(share - offset)[:, None]
        near = ((a + 2) * x - (a + 3)) * x * x + 1
        far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
        result += np.where(x <= 1, near, far) * _chosen(old, np.floor(at) + offset)
    return result


# Name -> what enlarges each side of latents.
_OF_LATENTS: Mapping[str, Callable[[int, int], Matrix]] = {
    "latent": _bilinear,
    "latent-bicubic": _bicubic,
    "latent-nearest": _nearest,
    "latent-nearest-exact": _nearest_exact,
}
_OF_PICTURES = ("lanczos", "nearest")
UPSCALERS = (*_OF_LATENTS, *_OF_PICTURES)


def enlarges_latents(upscaler: str) -> bool:
    """Whether one of `UPSCALERS` takes latents; the others take finished pictures."""
    return upscaler in _OF_LATENTS


def enlarged_latents(latents: Float32, upscaler: str, height: int, width: int) -> Float32:
    """Latents (n, C, h, w) at another size, as PyTorch's `interpolate` without antialiasing."""
    matrix = _OF_LATENTS[upscaler]
    rows, columns = matrix(latents.shape[2], height), matrix(latents.shape[3], width)
    return np.asarray(rows @ latents @ columns.T, np.float32)


def enlarged_pictures(pictures: NDArray[np.uint8], upscaler: str, height: int, width: int) -> Float32:
    """Pictures (n, H, W, 3) at another size, (n, height, width, 3) in [-1, 1], by Pillow's filters for bytes."""
    from PIL import Image

    images = [Image.fromarray(picture) for picture in pictures]
    if upscaler == "nearest":
        images = [image.resize((width, height), Image.Resampling.NEAREST) for image in images]
    return np.stack([resized_image(image, height, width) for image in images])
