"""Pictures and latents that clients send: base64 in JSON, or files of a form. Limits come before decoding."""

import base64
import binascii
import io
import logging
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from latentrt.runtime.errors import InputError
from latentrt.runtime.latents.opening import FORMATS
from latentrt.runtime.request import CallOptions, Request
from latentrt.runtime.request.metadata import BY_HASH

if TYPE_CHECKING:
    from PIL import Image

logger = logging.getLogger(__name__)
_NPY = b"\x93NUMPY"
# An icon's header does not say how large the picture in it is, so that it cannot be limited before it is decoded.
READ_FORMATS = tuple(name for name in FORMATS if name != "ICO")
TOGETHER = 4  # pictures of the largest size that one call may hold
LARGEST = 1e6  # of a value in an array; what models compute from larger ones overflows
_PART = 1 << 20  # characters of base64; between two parts other threads go on


def decoded_files(options: Mapping[str, Any], *, pixels: int, pictures: int) -> dict[str, Any]:
    """The options of a JSON body, with base64 texts replaced by PIL images and arrays; those that are there stay.

    Raises `InputError` for what is not base64 and what is not a picture.

    Args:
        pixels: of one picture; all of a call have at most `TOGETHER` times as many.
        pictures: in one list, at most.
    """
    left = TOGETHER * pixels

    def decoded(name: str, given: Any) -> Any:
        nonlocal left
        if isinstance(given, dict) and name == "control_image":  # by the names of ControlNets
            return {net: decoded(name, one) for net, one in given.items()}
        if isinstance(given, list):
            if len(given) > pictures:
                raise InputError(f"{name} has {len(given)} pictures: expected at most {pictures}")
            return [decoded(name, one) for one in given]
        value = given
        if not _is_decoded(given):
            value = from_bytes(name, bytes_of_base64(name, given), pixels=min(pixels, left))
        left -= value.size if isinstance(value, np.ndarray) else value.width * value.height
        return value

    return {
        name: decoded(name, given) if name in BY_HASH and given is not None else given
        for name, given in options.items()
    }


def _is_decoded(given: Any) -> bool:
    from PIL import Image

    return isinstance(given, np.ndarray | Image.Image)


def bytes_of_base64(name: str, text: Any) -> bytes:
    """The bytes of a base64 text or of a data URL. Bytes, which JSON cannot hold, are those of a file."""
    if isinstance(text, bytes):
        return text
    if not isinstance(text, str):
        raise InputError(f"{name}: expected base64 or a data URL, got {type(text).__name__}")
    if text.startswith("data:"):
        head, _, text = text.partition(",")
        if not head.endswith(";base64"):
            raise InputError(f"{name}: expected a data URL with ;base64")
    try:
        parts = [base64.b64decode(text[at : at + _PART], validate=True) for at in range(0, len(text), _PART)]
        if any(len(part) < _PART // 4 * 3 for part in parts[:-1]):
            raise ValueError("padding before the end")
        return b"".join(parts)
    except (binascii.Error, ValueError):
        raise InputError(
            f"{name}: expected base64 of a file, or a data URL; paths and addresses are not read"
        ) from None


def base64_text(data: bytes) -> str:
    """Base64 of bytes."""
    return base64.b64encode(data).decode()


def from_bytes(name: str, data: bytes, *, pixels: int) -> Any:
    """A picture, or the array of a .npy file."""
    if data.startswith(_NPY):
        return _array(name, data, values=pixels)
    return picture(name, data, pixels=pixels)


def picture(name: str, data: bytes, *, pixels: int) -> "Image.Image":
    """A decoded picture, upright. Raises `InputError`."""
    from PIL import Image, ImageOps

    Image.init()
    formats = [known for known in READ_FORMATS if known in Image.OPEN]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit below is ours
            opened = Image.open(io.BytesIO(data), formats=formats)
            if opened.width * opened.height > pixels:
                raise InputError(f"{name} has {opened.width}x{opened.height} pixels: expected at most {pixels:,}")
            opened.load()
    except InputError:
        raise
    except MemoryError:
        raise InputError(f"{name} needs more memory than there is") from None
    except Exception as error:  # decoders raise errors of many kinds for damaged files
        kinds = ", ".join(formats)
        raise InputError(
            f"{name} cannot be read as a picture ({str(error)[:100] or type(error).__name__}): expected one of {kinds}"
        ) from error
    try:
        return ImageOps.exif_transpose(opened)
    except Exception as error:  # as of cameras that write what no standard has
        logger.info("damaged EXIF data are not used: %s", type(error).__name__)
        return opened


def _array(name: str, data: bytes, *, values: int) -> Any:
    read: Mapping[tuple[int, int], Callable[..., Any]] = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        shape, _, dtype = read[version](file)
        count = math.prod(shape)
        if dtype.hasobject or count > values:
            raise InputError(f"{name} is an array of {shape} {dtype}: expected at most {values:,} numbers")
        if min(shape, default=0) < 0 or count * dtype.itemsize != len(data) - file.tell():
            raise InputError(f"{name} cannot be read as a .npy file: its length is not that of {shape} {dtype}")
        file.seek(0)
        array = np.lib.format.read_array(file, allow_pickle=False)
        if not (np.abs(array) <= LARGEST).all():
            raise InputError(f"{name} has values that are not finite, or beyond {LARGEST:g} in size")
        return array
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{name} cannot be read as a .npy file: {error}") from error


def transparent_as_white(mask: "Image.Image") -> "Image.Image":
    """A mask in OpenAI's form, transparent where the picture is drawn anew, in ours: white there.

    A mask without an alpha channel is left as it is. Raises `InputError` for one that is nowhere transparent.
    """
    from PIL import Image

    if "A" not in mask.getbands() and "transparency" not in mask.info:
        return mask
    alpha = mask.convert("RGBA").getchannel("A")
    if alpha.getextrema() == (255, 255):
        raise InputError(
            "the mask is opaque everywhere, so that nothing would be drawn anew: make it transparent there, or leave "
            "its alpha channel out and make it light there"
        )
    return Image.eval(alpha, lambda value: 255 - value)


def fitted(request: Request) -> Request:
    """The same call with pictures of the size that is drawn, from which it draws the same to the bit.

    The originals may be much larger, and would be in memory for as long as the call waits.
    """
    given = request.image
    if given is None:
        return request
    options: dict[str, Any] = dict(request.options)
    if given.pixels is not None:
        levels = np.rint((given.pixels + 1) * 127.5).astype(np.uint8)
        options["image"] = _smaller(options["image"], levels)
    if given.mask is not None:
        options["mask_image"] = _smaller(options["mask_image"], (given.mask[:, 0] * 255).astype(np.uint8))
    return replace(request, options=cast(CallOptions, options))


def _smaller(given: Any, levels: np.ndarray[Any, Any]) -> Any:
    """Pictures of these levels (pictures, H, W, …), or those that were given where none of them is larger."""
    from PIL import Image

    pictures = given if isinstance(given, list) else [given]
    largest = levels.shape[1] * levels.shape[2]
    if not any(isinstance(one, Image.Image) and one.width * one.height > largest for one in pictures):
        return given
    smaller = [Image.fromarray(one) for one in levels]
    return smaller if isinstance(given, list) else smaller[0]
