"""Pictures and latents that clients send: base64 in JSON, or files of a form. Limits come before decoding."""

import base64
import binascii
import io
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from latentrt.runtime.errors import InputError
from latentrt.runtime.latents.given_images import FORMATS
from latentrt.runtime.request.metadata import BY_HASH

if TYPE_CHECKING:
    from PIL import Image

_NPY = b"\x93NUMPY"


def decoded_files(options: Mapping[str, Any], *, pixels: int) -> dict[str, Any]:
    """The options of a JSON body, with base64 texts replaced by PIL images and arrays.

    Raises `InputError` for what is not base64, not a picture, or has more than `pixels` pixels.
    """
    result = dict(options)
    for name in BY_HASH:
        if (given := result.get(name)) is not None:
            several = isinstance(given, list)
            values = [
                from_bytes(name, bytes_of_base64(name, one), pixels=pixels) for one in (given if several else [given])
            ]
            result[name] = values if several else values[0]
    return result


def bytes_of_base64(name: str, text: Any) -> bytes:
    """The bytes of a base64 text or of a data URL."""
    if not isinstance(text, str):
        raise InputError(f"{name}: expected base64 or a data URL, got {type(text).__name__}")
    if text.startswith("data:"):
        head, _, text = text.partition(",")
        if not head.endswith(";base64"):
            raise InputError(f"{name}: expected a data URL with ;base64")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise InputError(
            f"{name}: expected base64 of a file, or a data URL; paths and addresses are not read"
        ) from None


def from_bytes(name: str, data: bytes, *, pixels: int) -> Any:
    """A picture, or the array of a .npy file."""
    if data.startswith(_NPY):
        return _array(name, data, values=4 * pixels)
    return picture(name, data, pixels=pixels)


def picture(name: str, data: bytes, *, pixels: int) -> "Image.Image":
    """A decoded picture. Raises `InputError`."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit below is ours
            opened = Image.open(io.BytesIO(data), formats=FORMATS)
            if opened.width * opened.height > pixels:
                raise InputError(f"{name} has {opened.width}x{opened.height} pixels: expected at most {pixels:,}")
            opened.load()
    except InputError:
        raise
    except MemoryError:
        raise InputError(f"{name} needs more memory than there is") from None
    except Exception as error:  # decoders raise errors of many kinds for damaged files
        kinds = ", ".join(FORMATS)
        raise InputError(
            f"{name} cannot be read as a picture ({type(error).__name__}): expected one of {kinds}"
        ) from error
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
        if dtype.hasobject or np.prod(shape, dtype=float) > values:
            raise InputError(f"{name} is an array of {shape} {dtype}: expected at most {values:,} numbers")
        file.seek(0)
        return np.lib.format.read_array(file, allow_pickle=False)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{name} cannot be read as a .npy file: {error}") from error


def transparent_as_white(mask: "Image.Image") -> "Image.Image":
    """A mask in OpenAI's form, transparent where the picture is drawn anew, in ours: white there.

    A mask without transparency is left as it is.
    """
    from PIL import Image

    if "A" not in mask.getbands() and "transparency" not in mask.info:
        return mask
    alpha = mask.convert("RGBA").getchannel("A")
    return Image.eval(alpha, lambda value: 255 - value)
