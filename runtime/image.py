"""Pictures to PIL and PNG, with the text that says how they were made."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .errors import InputError
from .files import written_whole

if TYPE_CHECKING:
    from PIL import Image


def pil_from_arrays(images: NDArray[np.uint8], text: Sequence[Mapping[str, str]]) -> list["Image.Image"]:
    """(n, H, W, 3) bytes to PIL images; `text[i]` is in `image.info`, and written by `image.save` to PNG files."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    result = []
    for array, chunks in zip(images, text, strict=True):
        image, info = Image.fromarray(array), PngInfo()
        for key, value in chunks.items():
            info.add_itxt(key, value)
        image.info.update(chunks)
        image.encoderinfo = {"pnginfo": info}
        result.append(image)
    return result


def require_png(path: Path) -> None:
    """Raise `InputError` for a file name that is not a PNG's."""
    if path.suffix.lower() != ".png":
        raise InputError(f"{path} does not end in .png: pictures are written as PNG, which keeps their text")


def save_png(image: "Image.Image", path: Path) -> None:
    """Save a picture, whole or not at all."""
    require_png(path)
    with written_whole(path) as temporary:
        image.save(temporary)


def save_npy(array: NDArray[np.float32], path: Path) -> None:
    """Save an array in numpy's format, whole or not at all."""
    with written_whole(path) as temporary:
        np.save(temporary, array)
