"""Pictures to PIL and PNG, with the text that says how they were made."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .errors import InputError

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
    """Save a picture through a temporary file, so that no half picture is left behind."""
    require_png(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.partial.png")
    try:
        image.save(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def save_npy(array: NDArray[np.float32], path: Path) -> None:
    """Save an array in numpy's format, through a temporary file as well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.partial.npy")
    try:
        np.save(temporary, array)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
