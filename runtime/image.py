"""Arrays to PIL images and PNG files, with text chunks that record how they were made."""

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
    """(n, H, W, 3) bytes to PIL images; `text[i]` goes to `image.info`, and `image.save` writes it to PNG files."""
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
    """Raise `InputError` if a file name does not end in .png."""
    if path.suffix.lower() != ".png":
        raise InputError(f"{path} does not end in .png: images are saved as PNG, which can hold their text")


def save_png(image: "Image.Image", path: Path) -> None:
    """Save an image atomically."""
    require_png(path)
    with written_whole(path) as temporary:
        image.save(temporary)


def save_npy(array: NDArray[np.float32], path: Path) -> None:
    """Save a .npy file atomically."""
    with written_whole(path) as temporary:
        np.save(temporary, array)
