"""The picture and the mask that img2img begins from, and a drawn part put back. Knows PIL and arrays, no fields."""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from latentrt.runtime.errors import InputError
from latentrt.serve.messages import Output

if TYPE_CHECKING:
    from PIL import Image

Size = tuple[int, int]
Box = tuple[int, int, int, int]  # left, top, right, bottom
PNG_LEVEL = 1  # of zlib, as of other pictures
Fit = Literal[0, 1, 2]  # stretched, cropped, with edges added


@dataclass(frozen=True, slots=True)
class Inpainting:
    """How the masked part is drawn.

    Attributes:
        inverted: the mask is dark where it is drawn anew.
        fill: the part begins from the colours around it, not from the picture.
        part: it alone is drawn, at the full size, and put back.
        padding: pixels around the part that are drawn along.
        blur: of the edges where it is put back, in pixels, horizontally and vertically.
    """

    inverted: bool = False
    fill: bool = False
    part: bool = False
    padding: int = 0
    blur: tuple[int, int] = (4, 4)


@dataclass(frozen=True, slots=True, eq=False)
class PutBack:
    """Puts drawn parts back into the whole picture, which is read again then: decoded, it may be large, and calls wait.

    Attributes:
        read: the whole picture and its mask.
        box: where the part belongs.
        whole: size of the whole picture.
    """

    read: "Callable[[], tuple[Image.Image, Image.Image]]"
    inpaint: Inpainting
    box: Box
    whole: Size

    def __call__(self, files: Sequence[bytes], output: Output) -> list[bytes]:
        """The files of whole pictures, from those of drawn parts; the text of a PNG stays."""
        whole, mask = self.read()
        whole, mask = opaque(whole), _soft(_binary(mask, inverted=self.inpaint.inverted), self.inpaint.blur)
        return [self._whole(whole, mask, data, output) for data in files]

    def _whole(self, whole: "Image.Image", mask: "Image.Image", data: bytes, output: Output) -> bytes:
        from PIL import Image
        from PIL.PngImagePlugin import PngInfo

        left, top, right, bottom = self.box
        with Image.open(io.BytesIO(data)) as drawn:
            fitting = drawn.convert("RGB").resize((right - left, bottom - top), Image.Resampling.LANCZOS)
            texts = getattr(drawn, "text", {})
        part = whole.copy()
        part.paste(fitting, (left, top))
        picture, file = Image.composite(part, whole, mask), io.BytesIO()
        if output.format == "png":
            info = PngInfo()
            for key, value in texts.items():
                info.add_itxt(key, value)
            picture.save(file, "PNG", pnginfo=info, compress_level=PNG_LEVEL)
        else:
            picture.save(file, output.format.upper(), quality=output.quality)
        return file.getvalue()


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """What a call begins from. `mask`: light where it is drawn anew."""

    image: "Image.Image"
    mask: "Image.Image | None" = None
    put_back: PutBack | None = None


def prepared(image: "Image.Image", size: Size, fit: Fit) -> Prepared:
    """A picture as a call takes it; what stretching does is left to the call. `size`: (width, height) that is drawn."""
    return Prepared(_fitted(opaque(image), size, fit))


def prepared_with_mask(
    image: "Image.Image",
    mask: "Image.Image",
    size: Size,
    fit: Fit,
    inpaint: Inpainting,
    read: "Callable[[], tuple[Image.Image, Image.Image]]",
) -> Prepared:
    """A picture and its mask as a call takes them.

    Args:
        size: that is drawn, (width, height).
        read: both of them once more.

    Raises: InputError: the mask has another size than the picture, or is dark everywhere.
    """
    image = opaque(image)
    if mask.size != image.size:
        raise InputError(f"the mask has {mask.size} pixels and the picture {image.size}: expected the same size")
    mask = _binary(mask, inverted=inpaint.inverted)
    if (found := mask.getbbox()) is None:
        raise InputError("the mask is dark everywhere, so that nothing would be drawn anew: make it light there")
    put_back = None
    if inpaint.part:
        box = _shaped(_padded(found, inpaint.padding, image.size), size, image.size)
        put_back = PutBack(read, inpaint, box, image.size)
        image, mask = image.crop(box), mask.crop(box)
    else:
        image, mask = _fitted(image, size, fit), _fitted(mask, size, fit)
    return Prepared(_filled(image, mask, size) if inpaint.fill else image, mask, put_back)


def opaque(image: "Image.Image") -> "Image.Image":
    """A picture in RGB; what is transparent becomes white."""
    from PIL import Image

    if "A" not in image.getbands() and "transparency" not in image.info:
        return image.convert("RGB")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")


def _binary(mask: "Image.Image", *, inverted: bool) -> "Image.Image":
    """A mask as "L" of 0 and 255. One with transparency is opaque where it is drawn anew, as painted on glass."""
    grey = mask.convert("L")
    if "A" in mask.getbands():
        alpha = mask.getchannel("A")
        grey = alpha if alpha.getextrema() != (255, 255) else grey
    return grey.point(lambda level: 255 * ((level >= 128) != inverted))


def _soft(mask: "Image.Image", blur: tuple[int, int]) -> "Image.Image":
    from PIL import ImageFilter

    return mask.filter(ImageFilter.GaussianBlur(blur)) if any(blur) else mask


def _fitted(image: "Image.Image", size: Size, fit: Fit) -> "Image.Image":
    """A picture of the shape of `size`: cropped around its middle, or with its edges drawn out."""
    width, height = image.size
    if fit == 0 or width * size[1] == height * size[0]:
        return image
    return cropped(image, size) if fit == 1 else _with_edges(image, size)


def cropped(image: "Image.Image", shape: Size) -> "Image.Image":
    """The middle of a picture that has this shape."""
    width, height = image.size
    wide = min(width, max(1, round(height * shape[0] / shape[1])))
    high = min(height, max(1, round(width * shape[1] / shape[0])))
    left, top = (width - wide) // 2, (height - high) // 2
    return image.crop((left, top, left + wide, top + high))


def _with_edges(image: "Image.Image", size: Size) -> "Image.Image":
    from PIL import Image

    scale = min(size[0] / image.width, size[1] / image.height)
    wide, high = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    small = image.resize((wide, high), Image.Resampling.LANCZOS)
    left, top = (size[0] - wide) // 2, (size[1] - high) // 2
    columns = np.clip(np.arange(size[0]) - left, 0, wide - 1)
    rows = np.clip(np.arange(size[1]) - top, 0, high - 1)
    return Image.fromarray(np.asarray(small)[rows][:, columns])


def _padded(box: Box, padding: int, size: Size) -> Box:
    left, top, right, bottom = box
    return (
        max(0, left - padding),
        max(0, top - padding),
        min(size[0], right + padding),
        min(size[1], bottom + padding),
    )


def _shaped(box: Box, shape: Size, size: Size) -> Box:
    """The box widened to a shape, as far as the picture goes, and moved back into it."""
    left, top, right, bottom = box
    wide = min(size[0], max(right - left, round((bottom - top) * shape[0] / shape[1])))
    high = min(size[1], max(bottom - top, round((right - left) * shape[1] / shape[0])))
    left = min(max(0, (left + right - wide) // 2), size[0] - wide)
    top = min(max(0, (top + bottom - high) // 2), size[1] - high)
    return left, top, left + wide, top + high


def _filled(image: "Image.Image", mask: "Image.Image", size: Size) -> "Image.Image":
    """The picture at the size that is drawn, its masked part in the colours around it, unless all of it is masked."""
    from PIL import Image

    image, mask = (one.resize(size, Image.Resampling.LANCZOS) for one in (image, mask))
    known = np.asarray(mask) < 128
    if not known.any():
        return image
    pixels = _pulled(np.asarray(image).astype(np.float32), known.astype(np.float32))
    return Image.fromarray(np.rint(pixels).astype(np.uint8))


def _pulled(pixels: NDArray[np.float32], known: NDArray[np.float32]) -> NDArray[np.float32]:
    """Unknown pixels from ever coarser means of the known ones (pull-push; Gortler et al., The Lumigraph, 1996).

    Args:
        pixels: (H, W, 3).
        known: (H, W), 1 or 0.
    """
    if known.all():
        return pixels
    height, width = known.shape
    even = ((0, height % 2), (0, width % 2))
    weights = _of_four(np.pad(known, even))
    sums = _of_four(np.pad(pixels * known[..., None], (*even, (0, 0))))
    means = sums / weights.clip(1)[..., None]
    coarse = _pulled(means, (weights > 0).astype(np.float32))
    fine = coarse.repeat(2, 0).repeat(2, 1)[:height, :width]
    return np.where(known[..., None] > 0, pixels, fine)


def _of_four(array: NDArray[np.float32]) -> NDArray[np.float32]:
    """Sums of blocks of two by two."""
    result: NDArray[np.float32] = array[::2, ::2] + array[1::2, ::2] + array[::2, 1::2] + array[1::2, 1::2]
    return result
