"""Pictures that steer a call instead of beginning it: maps of ControlNets and adapters, and what CLIP looks at."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from latentrt.runtime.arrays import Float32
from latentrt.runtime.errors import InputError

from .clip_pixels import clip_pixels
from .opening import Picture, listed, open_one, opened, rows_of
from .resize import resized_pixels, size_of

if TYPE_CHECKING:
    from PIL import Image


def steering_pictures(
    name: str, given: Picture, size: tuple[int, int], channels: int, *, prompts: int, per_prompt: int
) -> tuple[Float32, NDArray[np.int64]]:
    """Pictures that steer a call: (pictures, H, W, channels) float32 in [0, 1], and the picture of each image.

    Resized as diffusers' control image processor does. Arrays may hold -1, which marks what an inpainting ControlNet
    draws anew. Raises `InputError` for what is no picture.
    """
    pictures = [_with_marks(name, one) for one in listed(name, given)]
    pixels = np.stack([resized_pixels(picture, *size) for picture in pictures])
    if channels == 1:
        pixels = pixels.mean(3, keepdims=True)
    return pixels.astype(np.float32), rows_of(len(pictures), prompts, per_prompt)


def clip_pictures(
    name: str, given: Picture, side: int, *, prompts: int, per_prompt: int
) -> tuple[Float32, NDArray[np.int64]]:
    """Pictures as CLIP's image encoder reads them, (pictures, S, S, 3) in [0, 1], and the picture of each image."""
    pictures = [clip_pixels(picture, side) for picture in opened(name, given)]
    return np.stack(pictures), rows_of(len(pictures), prompts, per_prompt)


def size_of_steering(name: str, given: Picture, factor: int) -> tuple[int, int]:
    """Height and width of the first picture, rounded down to a multiple of the VAE's factor."""
    height, width = size_of(opened(name, given)[0])
    if min(height, width) < factor:
        raise InputError(f"{name} has {width}x{height} pixels; expected at least {factor}x{factor}")
    return height // factor * factor, width // factor * factor


def _with_marks(name: str, given: Picture) -> "Image.Image | Float32":
    """As `_open_one`; an array (H, W, channels) of floats keeps the pixels that are -1."""
    if not isinstance(given, np.ndarray) or given.ndim != 3 or given.dtype.kind != "f":
        return open_one(name, given)
    marked = given == -1
    opened = open_one(name, np.where(marked, given.dtype.type(0), given))
    return np.where(marked, np.float32(-1), np.asarray(opened, np.float32))
