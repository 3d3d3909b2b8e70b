"""Pictures of ControlNet units as maps of the shape that is drawn, as sd-webui-controlnet makes them.

Knows pictures; knows no fields and no nets. OpenCV is imported where edges are to be found.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast

import numpy as np

from latentrt.runtime.errors import InputError

from .pictures import Box, Size, cropped, opaque

if TYPE_CHECKING:
    from PIL import Image

Resize = Literal[0, 1, 2]  # stretched, cropped, fitted in with the rest filled
RESOLUTION = 512  # of the shorter side
THRESHOLDS = 100.0, 200.0
_BLOCK = 64  # the extension rounds sides up to multiples of it while it looks for edges


@dataclass(frozen=True, slots=True)
class Canny:
    """Find edges by Canny's method.

    Attributes:
        resolution: shorter side of the map; None is that of the picture that is drawn ("pixel perfect").
        thresholds: of a gradient that goes on with an edge, and of one that begins it.
    """

    resolution: int | None = RESOLUTION
    thresholds: tuple[float, float] = THRESHOLDS


@dataclass(frozen=True, slots=True)
class Frame:
    """What is drawn.

    Attributes:
        size: (width, height).
        pixels: that a map may have.
        whole, part: where a part of a picture is drawn alone: the size of the whole picture, and the part.
    """

    size: Size
    pixels: int
    whole: Size | None = None
    part: Box | None = None


def control_map(picture: "Image.Image", frame: Frame, resize: Resize, canny: Canny | None) -> "Image.Image":
    """A map of the shape of the frame, in RGB and in its own resolution: calls resize it to what they draw.

    Args:
        canny: None where the picture is the map.

    Raises: InputError: OpenCV is not installed, or the map would be too large.
    """
    from PIL import Image

    picture = opaque(picture)
    if frame.whole is not None and frame.part is not None:
        whole = _shaped(picture, frame.whole, frame.pixels, resize)
        picture = whole.resize(frame.whole, Image.Resampling.LANCZOS).crop(frame.part)
    if canny is not None:
        resolution = canny.resolution or _own_resolution(picture.size, frame.size, resize)
        picture = _edges(picture, canny.thresholds, resolution, frame.pixels)
    return _shaped(picture, frame.size, frame.pixels, resize)


def _shaped(picture: "Image.Image", size: Size, pixels: int, resize: Resize) -> "Image.Image":
    """A picture of the shape of `size`, in its own resolution; one that is stretched keeps its shape."""
    if resize == 0 or picture.width * size[1] == picture.height * size[0]:
        return picture
    return cropped(picture, size) if resize == 1 else _filled(picture, size, pixels)


def _filled(picture: "Image.Image", size: Size, pixels: int) -> "Image.Image":
    """The picture in the middle of one colour, the median of its edges."""
    from PIL import Image

    given = np.asarray(picture)
    edges = np.concatenate([given[0], given[-1], given[:, 0], given[:, -1]])
    wide = max(picture.width, round(picture.height * size[0] / size[1]))
    high = max(picture.height, round(picture.width * size[1] / size[0]))
    _require_fit(picture.size, (wide, high), pixels)
    colour = cast(tuple[int, ...], tuple(np.median(edges, axis=0).astype(np.uint8).tolist()))
    result = Image.new("RGB", (wide, high), colour)
    result.paste(picture, ((wide - picture.width) // 2, (high - picture.height) // 2))
    return result


def _own_resolution(picture: Size, size: Size, resize: Resize) -> int:
    """The shorter side at which the picture need not be resized after it."""
    scales = [side / own for side, own in zip(size, picture, strict=True)]
    return max(1, round((min(scales) if resize == 2 else max(scales)) * min(picture)))


def _edges(picture: "Image.Image", thresholds: tuple[float, float], resolution: int, most: int) -> "Image.Image":
    """White edges on black. The picture is padded to whole blocks meanwhile, as edges at its border depend on it."""
    from PIL import Image

    try:
        import cv2
    except ImportError as error:
        raise InputError(
            "module 'canny' needs OpenCV, which this server does not have: the operator installs it with "
            "pip install 'latentrt[canny]'; or make the map yourself, and pass module 'none'"
        ) from error
    scale = resolution / min(picture.size)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    _require_fit(picture.size, (width, height), most)
    how = cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA
    pixels = cv2.resize(np.asarray(picture), (width, height), interpolation=how)
    padding = ((0, -height % _BLOCK), (0, -width % _BLOCK), (0, 0))
    edges = cv2.Canny(np.pad(pixels, padding, mode="edge"), *thresholds)
    return Image.fromarray(np.ascontiguousarray(edges[:height, :width])).convert("RGB")


def _require_fit(picture: Size, size: Size, pixels: int) -> None:
    """Raise `InputError` for a map that is too large, as of a picture that is one line."""
    if size[0] * size[1] > pixels:
        raise InputError(
            f"a picture of {picture[0]}x{picture[1]} would become a map of {size[0]}x{size[1]}: expected at most "
            f"{pixels:,} pixels; pass one that is more like the picture that is drawn"
        )
