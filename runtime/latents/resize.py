"""Resizes images and masks as diffusers' image processors do: PIL images with Lanczos, arrays to the nearest."""

from typing import TYPE_CHECKING, Any

import numpy as np

from latentrt.runtime.arrays import Float32
from latentrt.runtime.errors import InputError

if TYPE_CHECKING:
    from PIL import Image


def size_of(picture: Any) -> tuple[int, int]:
    """Height and width of a PIL image or an array (H, W, channels)."""
    height, width = picture.shape[:2] if isinstance(picture, np.ndarray) else (picture.height, picture.width)
    return height, width


def resized_image(picture: Any, height: int, width: int) -> Float32:
    """Resize to (H, W, 3) in [-1, 1]."""
    return resized_pixels(picture, height, width) * np.float32(2) - np.float32(1)


def resized_pixels(picture: Any, height: int, width: int) -> Float32:
    """Resize to (H, W, 3) in the range of the picture: [0, 1], and for arrays what they hold."""
    if isinstance(picture, np.ndarray):
        return np.broadcast_to(_nearest(picture, height, width)[:, :, :3], (height, width, 3))
    return _lanczos(_converted(picture, "RGB"), height, width)


def resized_mask(picture: Any, height: int, width: int) -> Float32:
    """Resize to (1, H, W), 0 or 1. PIL images are converted to grey after resizing, as in diffusers."""
    if isinstance(picture, np.ndarray):
        if picture.shape[2] != 1:
            raise InputError(f"mask_image is a float array with {picture.shape[2]} channels; expected shape (H, W)")
        grey = _nearest(picture, height, width)[:, :, 0]
    else:
        _refuse_mask_in_alpha(picture)
        grey = _lanczos(picture, height, width, "L")
    return (grey[None] >= 0.5).astype(np.float32)


def _refuse_mask_in_alpha(picture: "Image.Image") -> None:
    """A mask that is drawn in the alpha channel: programs disagree whether transparent or opaque means redrawn."""
    if picture.mode not in ("RGBA", "LA"):
        return
    levels = np.asarray(picture)
    colour, alpha = levels[..., :-1], levels[..., -1]
    if np.ptp(alpha) and not np.ptp(colour):
        raise InputError(
            "mask_image has one colour and its shape in the alpha channel. Pass a grey image that is white where the "
            "image is drawn anew: image.getchannel('A'), or its inverse if transparent parts are meant"
        )


def _lanczos(picture: "Image.Image", height: int, width: int, mode: str | None = None) -> Float32:
    """Resize with Lanczos, in [0, 1]."""
    from PIL import Image

    try:
        resized = picture.resize((width, height), resample=Image.Resampling.LANCZOS)
    except ValueError as error:
        raise InputError(f"a picture of PIL's mode {picture.mode} cannot be resized: convert it to RGB") from error
    values: Float32 = np.asarray(resized if mode is None else _converted(resized, mode)).astype(np.float32)
    return values / np.float32(255)


def _converted(picture: "Image.Image", mode: str) -> "Image.Image":
    try:
        return picture.convert(mode)
    except (ValueError, OSError) as error:
        raise InputError(
            f"a picture of PIL's mode {picture.mode} is not converted to {mode}: convert it first"
        ) from error


def _nearest(array: Float32, height: int, width: int) -> Float32:
    """Resize like PyTorch's `interpolate` in mode "nearest", which diffusers uses for arrays."""
    rows, columns = (
        np.minimum(np.floor(np.arange(new, dtype=np.float32) * np.float32(old / new)).astype(int), old - 1)
        for new, old in ((height, array.shape[0]), (width, array.shape[1]))
    )
    scaled: Float32 = array[rows][:, columns]
    return scaled
