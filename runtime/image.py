"""Arrays to PIL images and PNG files, with text chunks that record how they were made."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from numpy.typing import NDArray

from .errors import InputError
from .files import not_written, require_writable, written_whole

if TYPE_CHECKING:
    from PIL import Image

_END_OF_PNG = b"IEND\xaeB`\x82"


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


def text_of_png(file: BinaryIO) -> dict[str, str]:
    """The text chunks of a whole PNG file; raises `OSError` or `ValueError` where it is none, or not whole."""
    import io  # imported here because only jobs that are resumed need it

    from PIL import Image

    data = file.read()
    if not data.endswith(_END_OF_PNG):
        raise ValueError("the file does not end as PNG files do")
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            return {str(key): str(value) for key, value in getattr(image, "text", {}).items()}
    except (SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(str(error)) from error


def require_png(path: PurePath) -> None:
    """Raise `InputError` if a file name does not end in .png."""
    if path.suffix.lower() != ".png":
        raise InputError(f"{path} does not end in .png: images are saved as PNG, which can hold their text")


def require_place(path: Path) -> None:
    """Raise `InputError` if no file can be written there; to be called before the work."""
    with _told(path):
        require_writable(path)


def save_png(image: "Image.Image", path: Path) -> None:
    """Save an image atomically. Raises `InputError` if it cannot be written."""
    require_png(path)
    with _told(path), written_whole(path) as temporary:
        image.save(temporary)


def save_or_keep(image: "Image.Image", path: Path) -> None:
    """Save a finished image; where that fails, keep it in the folder for temporary files, and say so in the error."""
    import tempfile  # imported here because it is rarely needed

    try:
        save_png(image, path)
    except InputError as error:
        try:
            kept = Path(tempfile.mkdtemp(prefix="latentrt-")) / path.name
            save_png(image, kept)
        except (InputError, OSError):
            raise error from None
        raise InputError(f"{error}. The image is kept as {kept}") from error


def save_npy(array: NDArray[np.float32], path: Path) -> None:
    """Save a .npy file atomically. Raises `InputError` if it cannot be written."""
    with _told(path), written_whole(path) as temporary:
        np.save(temporary, array)


@contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"{not_written(path, error)}. Choose another place") from error
