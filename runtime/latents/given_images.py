"""Loads, checks and resizes the images and masks of a call, as diffusers' image processors do.

Knows files, PIL and arrays; knows nothing about the VAE.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from latentrt.runtime.arrays import Float32
from latentrt.runtime.errors import InputError

from .npy import is_npy, read_npy
from .opening import MASK, Picture, opened, rows_of
from .resize import resized_image, resized_mask, size_of

if TYPE_CHECKING:
    pass


class FileRow(np.ndarray[Any, np.dtype[Any]]):
    """One row, (1, …), of an array in a file; `source` says which, as the text of a PNG records it."""

    source: Mapping[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class ImageInput:
    """Input images at the size of the call.

    Attributes:
        pixels: (pictures, H, W, 3) float32 in [-1, 1]; None if latents were given.
        latents: (pictures, C, h, w) float32, scaled like the UNet's; None if pixels were given.
        mask: (pictures, 1, H, W) float32, 1 where the image is redrawn, 0 where it is kept; None without a mask.
        rows: (images,) int, index of the input picture of each output image.
    """

    pixels: Float32 | None
    latents: Float32 | None
    mask: Float32 | None
    rows: NDArray[np.int64]

    def masked_pixels(self) -> Float32:
        """The pictures with the redrawn part grey."""
        assert self.pixels is not None
        assert self.mask is not None
        return self.pixels * (self.mask < 0.5).transpose(0, 2, 3, 1)

    def latent_mask(self, factor: int) -> Float32:
        """The mask at latent resolution, nearest-neighbour: (pictures, 1, h, w)."""
        assert self.mask is not None
        return np.ascontiguousarray(self.mask[:, :, ::factor, ::factor])


class GivenImages:
    """The arguments `image` and `mask_image`, loaded; `fitted` resizes them."""

    def __init__(self, image: Picture, mask_image: Picture, latent_channels: int) -> None:
        """Raises `InputError` for values that are not images, unreadable files, or a mask without an image."""
        if image is None and mask_image is not None:
            raise InputError("mask_image needs an image: pass image=")
        if is_npy(image):
            image = read_npy(image)
        self.latents = _as_latents(image, latent_channels)
        given = image is not None and self.latents is None
        self.pictures = opened("image", image) if given else []
        self.masks = opened(MASK, mask_image) if mask_image is not None else []

    def size(self, factor: int) -> tuple[int, int] | None:
        """Default height and width: those of the image, rounded down to a multiple of the VAE's scale factor."""
        if self.latents is not None:
            return self.latents.shape[2] * factor, self.latents.shape[3] * factor
        if not self.pictures:
            return None
        height, width = size_of(self.pictures[0])
        if min(height, width) < factor:
            raise InputError(
                f"the image has {width}x{height} pixels; expected at least {factor}x{factor}: pass height and width "
                "to enlarge it"
            )
        return height // factor * factor, width // factor * factor

    def fitted(self, height: int, width: int, *, factor: int, prompts: int, per_prompt: int) -> ImageInput | None:
        """The pictures resized, for `prompts * per_prompt` images; None if none were given. Raises `InputError`."""
        count = len(self.pictures) if self.latents is None else len(self.latents)
        if not count:
            return None
        if self.latents is not None and self.latents.shape[2:] != (height // factor, width // factor):
            raise InputError(
                f"image has latents of shape {self.latents.shape}, which do not match {width}x{height} pixels"
            )
        if self.latents is not None and self.masks:
            raise InputError("mask_image needs pixels, but image has latents: decode them first")
        if len(self.masks) not in (0, 1, count):
            raise InputError(f"{len(self.masks)} masks for {count} images: pass one, or one per image")
        rows = rows_of(count, prompts, per_prompt)
        pixels = [resized_image(picture, height, width) for picture in self.pictures]
        masks = [resized_mask(mask, height, width) for mask in self.masks]
        return ImageInput(
            pixels=np.stack(pixels) if pixels else None,
            latents=self.latents,
            mask=np.stack(masks * (count if len(masks) == 1 else 1)) if masks else None,
            rows=rows,
        )


def _as_latents(image: Picture, channels: int) -> Float32 | None:
    """Float arrays (pictures, C, h, w), such as `Result.latents`, are latents; (pictures, H, W, 3) are images."""
    array = image if isinstance(image, np.ndarray) and image.ndim == 4 and image.dtype.kind == "f" else None
    if array is None or array.shape[1] != channels or array.shape[3] <= channels:
        return None
    with np.errstate(over="ignore"):
        latents = np.asarray(array, np.float32)
    if not np.isfinite(latents).all():
        raise InputError("image has latents with NaN or infinity, or beyond float32")
    return latents
