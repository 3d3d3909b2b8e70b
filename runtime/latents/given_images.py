"""Loads, checks and resizes the images and masks of a call, as diffusers' image processors do.

Knows files, PIL and arrays; knows nothing about the VAE.
"""

import logging
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from latentrt.runtime.arrays import Float32
from latentrt.runtime.errors import InputError, LatentRTError
from latentrt.runtime.files import open_regular
from latentrt.runtime.limits import MAX_IMAGES, MAX_PIXELS, raised_by

from .clip_pixels import clip_pixels
from .npy import is_npy, read_npy
from .resize import resized_image, resized_mask, resized_pixels, size_of

if TYPE_CHECKING:
    from PIL import Image

# What Pillow decodes by itself; some of its other formats run programs.
FORMATS = ("AVIF", "BMP", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "PNG", "PPM", "QOI", "TGA", "TIFF", "WEBP")
# Colours multiplied with their alpha, which most conversions refuse.
_PLAIN_MODES = {"La": "LA", "RGBa": "RGBA"}
# One image: a path, a PIL image, or an array (H, W) or (H, W, 3 or 4) of uint8 or of floats in [0, 1]. Arrays may be
# stacked to (images, H, W, 3).
Picture = Any
MASK = "mask_image"


class FileRow(np.ndarray[Any, np.dtype[Any]]):
    """One row, (1, …), of an array in a file; `source` says which, as the text of a PNG records it."""

    source: Mapping[str, Any]


logger = logging.getLogger(__name__)


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
        self.pictures = _opened("image", image) if given else []
        self.masks = _opened(MASK, mask_image) if mask_image is not None else []

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
        rows = _rows(count, prompts, per_prompt)
        pixels = [resized_image(picture, height, width) for picture in self.pictures]
        masks = [resized_mask(mask, height, width) for mask in self.masks]
        return ImageInput(
            pixels=np.stack(pixels) if pixels else None,
            latents=self.latents,
            mask=np.stack(masks * (count if len(masks) == 1 else 1)) if masks else None,
            rows=rows,
        )


def _rows(count: int, prompts: int, per_prompt: int) -> NDArray[np.int64]:
    if count not in (1, prompts, prompts * per_prompt):
        raise InputError(f"{count} images for {prompts} prompts: pass one, or one per prompt")
    return np.arange(prompts * per_prompt) // {1: prompts * per_prompt, prompts: per_prompt}.get(count, 1)


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


def steering_pictures(
    name: str, given: Picture, size: tuple[int, int], channels: int, *, prompts: int, per_prompt: int
) -> tuple[Float32, NDArray[np.int64]]:
    """Pictures that steer a call: (pictures, H, W, channels) float32 in [0, 1], and the picture of each image.

    Resized as diffusers' control image processor does. Arrays may hold -1, which marks what an inpainting ControlNet
    draws anew. Raises `InputError` for what is no picture.
    """
    pictures = [_with_marks(name, one) for one in _listed(name, given)]
    pixels = np.stack([resized_pixels(picture, *size) for picture in pictures])
    if channels == 1:
        pixels = pixels.mean(3, keepdims=True)
    return pixels.astype(np.float32), _rows(len(pictures), prompts, per_prompt)


def clip_pictures(
    name: str, given: Picture, side: int, *, prompts: int, per_prompt: int
) -> tuple[Float32, NDArray[np.int64]]:
    """Pictures as CLIP's image encoder reads them, (pictures, S, S, 3) in [0, 1], and the picture of each image."""
    pictures = [clip_pixels(picture, side) for picture in _opened(name, given)]
    return np.stack(pictures), _rows(len(pictures), prompts, per_prompt)


def size_of_steering(name: str, given: Picture, factor: int) -> tuple[int, int]:
    """Height and width of the first picture, rounded down to a multiple of the VAE's factor."""
    height, width = size_of(_opened(name, given)[0])
    if min(height, width) < factor:
        raise InputError(f"{name} has {width}x{height} pixels; expected at least {factor}x{factor}")
    return height // factor * factor, width // factor * factor


def holds_several(given: Picture) -> bool:
    """Whether this is a list of pictures, or an array of them."""
    listed = isinstance(given, Sequence) and not isinstance(given, str | bytes)
    return listed or (isinstance(given, np.ndarray) and given.ndim == 4)


def _opened(name: str, given: Picture) -> list[Any]:
    """PIL images with their EXIF rotation applied, or float arrays (H, W, channels) in [0, 1]."""
    return [_open_one(name, picture) for picture in _listed(name, given)]


def _with_marks(name: str, given: Picture) -> "Image.Image | Float32":
    """As `_open_one`; an array (H, W, channels) of floats keeps the pixels that are -1."""
    if not isinstance(given, np.ndarray) or given.ndim != 3 or given.dtype.kind != "f":
        return _open_one(name, given)
    marked = given == -1
    opened = _open_one(name, np.where(marked, given.dtype.type(0), given))
    return np.where(marked, np.float32(-1), np.asarray(opened, np.float32))


def _listed(name: str, given: Picture) -> list[Picture]:
    if holds_several(given) and not 1 <= len(given) <= MAX_IMAGES:
        raise InputError(f"{name} has {len(given)} pictures: expected 1 to {MAX_IMAGES}; {raised_by('MAX_IMAGES')}")
    return list(given) if holds_several(given) else [given]


def _open_one(name: str, given: Picture) -> "Image.Image | Float32":
    from PIL import Image, ImageOps

    if isinstance(given, np.ndarray):
        given = _from_array(name, given)
        if isinstance(given, np.ndarray):
            return given
    if isinstance(given, str | os.PathLike):
        given = _read(Path(given))
    if not isinstance(given, Image.Image):
        raise InputError(f"{name} has type {type(given).__name__}; expected a PIL image, a numpy array or a path")
    if given.width * given.height > MAX_PIXELS:
        raise InputError(
            f"{name} has {given.width}x{given.height} pixels: expected at most {MAX_PIXELS:,}; "
            + raised_by("MAX_PIXELS")
        )
    try:
        given.load()
    except Exception as error:  # a closed or truncated file, or a plugin that fails
        raise InputError(f"{name} cannot be read: {type(error).__name__}: {str(error)[:200]}") from error
    if given.mode in _PLAIN_MODES:
        given = given.convert(_PLAIN_MODES[given.mode])
    try:
        given = ImageOps.exif_transpose(given)
    except Exception as error:
        logger.warning("the EXIF data of %s are damaged and not used: %s", name, str(error)[:200])
    return _eight_bits(name, given)


def _read(path: Path) -> "Image.Image":
    from PIL import Image, UnidentifiedImageError

    try:
        with open_regular(path) as file, warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            Image.init()
            image = Image.open(file, formats=[known for known in FORMATS if known in Image.OPEN])
            image.load()
            return image
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(
            f"{path} would decompress to more than {Image.MAX_IMAGE_PIXELS:,} pixels: make it smaller, or if you trust "
            "it, open it with PIL and pass the image"
        ) from error
    except UnidentifiedImageError:
        raise InputError(f"{path} is not an image that Pillow can read: expected {', '.join(FORMATS)}") from None
    except LatentRTError:
        raise
    except Exception as error:  # of any type: Pillow's plugins raise what their parsers do
        raise InputError(f"{str(path)[:300]} cannot be read: {str(error)[:300] or type(error).__name__}") from error


def _from_array(name: str, array: NDArray[Any]) -> "Image.Image | Float32":
    """uint8 and bool become a PIL image; floats stay an array (H, W, channels)."""
    from PIL import Image

    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim == 3 and array.shape[0] * array.shape[1] > MAX_PIXELS:
        raise InputError(
            f"{name} has shape {array.shape}: expected at most {MAX_PIXELS:,} pixels; {raised_by('MAX_PIXELS')}"
        )
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or not array.size:
        raise InputError(f"{name} has shape {array.shape}; expected (H, W), (H, W, 3) or (images, H, W, 3)")
    integers = array.dtype.kind in "iu"
    # Masks that classes or comparisons gave; as levels of 255 they would say that nothing is drawn anew.
    if array.dtype == np.bool_ or (integers and name == MASK and array.min() >= 0 and array.max() == 1):
        array = array.astype(np.uint8) * np.uint8(255)
    if array.dtype == np.uint8:
        return Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)
    if array.dtype.kind != "f":
        hint = ": divide it by 65535" if array.dtype == np.uint16 else ""
        raise InputError(f"{name} is an array of {array.dtype}; expected uint8, or floats from 0 to 1{hint}")
    least, most = array.min(), array.max()
    if not (least >= 0 and most <= 1):
        hint = ""
        if least >= -1 and most <= 1:
            hint = ": if they are from -1 to 1, pass array / 2 + 0.5"
        elif least >= 0 and most <= 255:
            hint = ": if they are from 0 to 255, pass array / 255"
        raise InputError(f"{name} has values from {least:g} to {most:g}; expected floats from 0 to 1{hint}")
    return np.asarray(array, np.float32)


def _eight_bits(name: str, image: "Image.Image") -> "Image.Image":
    """Grey images of more than 8 bits scaled to 8, since Pillow would clip them; masks of 0 and 1 as 0 and 255."""
    from PIL import Image

    deep = image.mode.startswith("I")
    if image.mode == "F":
        raise InputError(
            f"{name} has floats (Pillow's mode F), whose range is not known: convert it to L or RGB, or pass an array "
            "of floats from 0 to 1"
        )
    if not deep and not (name == MASK and image.mode == "L"):
        return image
    levels = np.asarray(image)
    least, most = levels.min(), levels.max()
    if name == MASK and least >= 0 and most == 1:
        return Image.fromarray((levels * 255).astype(np.uint8))
    if not deep:
        return image
    if image.mode == "I" and least >= 0 and most <= 255:
        return Image.fromarray(levels.astype(np.uint8))
    if least < 0 or most > 65535:
        raise InputError(f"{name} has levels from {least} to {most}; expected 8 or 16 bits: from 0 to 255 or 65535")
    return Image.fromarray(np.rint(levels / np.float32(257)).astype(np.uint8))
