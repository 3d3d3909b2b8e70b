"""Opens the pictures of a call: files, PIL images and arrays, one or a list of them. Knows no sizes."""

import logging
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from latentrt.runtime.arrays import Float32
from latentrt.runtime.errors import InputError, LatentRTError
from latentrt.runtime.files import open_regular
from latentrt.runtime.limits import MAX_IMAGES, MAX_PIXELS, raised_by

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


logger = logging.getLogger(__name__)


def holds_several(given: Picture) -> bool:
    """Whether this is a list of pictures, or an array of them."""
    listed = isinstance(given, Sequence) and not isinstance(given, str | bytes)
    return listed or (isinstance(given, np.ndarray) and given.ndim == 4)


def opened(name: str, given: Picture) -> list[Any]:
    """PIL images with their EXIF rotation applied, or float arrays (H, W, channels) in [0, 1]."""
    return [open_one(name, picture) for picture in listed(name, given)]


def listed(name: str, given: Picture) -> list[Picture]:
    """The pictures of a list or an array, or the one that was given."""
    if holds_several(given) and not 1 <= len(given) <= MAX_IMAGES:
        raise InputError(f"{name} has {len(given)} pictures: expected 1 to {MAX_IMAGES}; {raised_by('MAX_IMAGES')}")
    return list(given) if holds_several(given) else [given]


def open_one(name: str, given: Picture) -> "Image.Image | Float32":
    """One of `opened`."""
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


def rows_of(count: int, prompts: int, per_prompt: int) -> NDArray[np.int64]:
    """(images,), the picture of each image: one for all, one for each prompt or one for each image."""
    if count not in (1, prompts, prompts * per_prompt):
        raise InputError(f"{count} images for {prompts} prompts: pass one, or one per prompt")
    return np.arange(prompts * per_prompt) // {1: prompts * per_prompt, prompts: per_prompt}.get(count, 1)
