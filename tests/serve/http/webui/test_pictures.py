"""Given pictures and masks: fitted, filled, cut out and put back."""

import io

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter
from PIL.PngImagePlugin import PngInfo

from latentrt.runtime.errors import InputError
from latentrt.serve.http.webui.pictures import Inpainting, PutBack, _binary, prepared, prepared_with_mask
from latentrt.serve.messages import Output


def striped(width: int, height: int) -> Image.Image:
    """Each pixel has its column and row as red and green."""
    rows, columns = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([columns, rows, rows * 0], -1).astype(np.uint8))


def masked(size: tuple[int, int], box: tuple[int, int, int, int]) -> Image.Image:
    """A mask that is light in a box; its right and bottom are outside."""
    mask = Image.new("L", size)
    ImageDraw.Draw(mask).rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill=255)
    return mask


def test_stretching_is_left_to_the_call() -> None:
    image = striped(100, 50)
    assert np.array_equal(np.asarray(prepared(image, (64, 64), 0).image), np.asarray(image))


def test_cropping_keeps_the_middle() -> None:
    wide = prepared(striped(100, 50), (64, 64), 1).image
    assert np.array_equal(np.asarray(wide), np.asarray(striped(100, 50))[:, 25:75])
    high = prepared(striped(50, 100), (64, 32), 1).image
    assert np.array_equal(np.asarray(high), np.asarray(striped(50, 100))[37:62])


def test_edges_are_drawn_out() -> None:
    image = Image.new("RGB", (8, 4), "red")
    image.paste((0, 0, 255), (0, 2, 8, 4))
    pixels = np.asarray(prepared(image, (8, 8), 2).image)
    assert pixels.shape == (8, 8, 3)
    assert (pixels[:4] == [255, 0, 0]).all()
    assert (pixels[4:] == [0, 0, 255]).all()
    thin = prepared(Image.new("RGB", (4000, 1), "red"), (64, 64), 2).image
    assert thin.size == (64, 64), "never more than is drawn"


def test_transparent_parts_are_white() -> None:
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    image.putpixel((1, 0), (10, 20, 30, 255))
    assert [*map(tuple, np.asarray(prepared(image, (2, 1), 0).image)[0].tolist())] == [(255, 255, 255), (10, 20, 30)]


@pytest.mark.parametrize("inverted", [False, True])
def test_masks_of_every_kind(inverted: bool) -> None:
    light = masked((4, 4), (1, 1, 3, 3))
    painted = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    painted.paste((0, 0, 0, 255), (1, 1, 3, 3))
    opaque = light.convert("RGBA")
    wanted = np.asarray(light) if not inverted else 255 - np.asarray(light)
    for mask in (light, light.convert("1"), light.convert("RGB"), opaque, painted):
        assert np.array_equal(np.asarray(_binary(mask, inverted=inverted)), wanted)


def test_the_masked_part_is_filled_with_the_colours_around_it() -> None:
    image = Image.new("RGB", (64, 64), "red")
    image.paste((0, 0, 255), (32, 0, 64, 64))
    mask = masked((64, 64), (8, 20, 20, 40))
    ImageDraw.Draw(mask).rectangle((44, 20, 55, 39), fill=255)
    spoilt = image.copy()
    spoilt.paste((0, 255, 0), mask=mask)
    whole = Inpainting(fill=True)
    filled = prepared_with_mask(spoilt, mask, (64, 64), 0, whole, lambda: (spoilt, mask))
    assert np.array_equal(np.asarray(filled.image), np.asarray(image)), "each hole lies within one colour"
    kept = prepared_with_mask(spoilt, mask, (64, 64), 0, Inpainting(), lambda: (spoilt, mask))
    assert np.array_equal(np.asarray(kept.image), np.asarray(spoilt))
    everything = Image.new("L", (64, 64), 255)
    same = prepared_with_mask(spoilt, everything, (64, 64), 0, whole, lambda: (spoilt, everything))
    assert np.array_equal(np.asarray(same.image), np.asarray(spoilt)), "nothing is around it"


@pytest.mark.parametrize(
    ("box", "padding", "size", "wanted"),
    [
        ((40, 20, 60, 40), 0, (64, 64), (40, 20, 60, 40)),
        ((40, 20, 60, 40), 5, (64, 64), (35, 15, 65, 45)),
        ((40, 20, 60, 30), 0, (64, 64), (40, 15, 60, 35)),
        ((40, 20, 60, 40), 0, (128, 64), (30, 20, 70, 40)),
        ((0, 0, 10, 20), 0, (64, 64), (0, 0, 20, 20)),
        ((90, 30, 100, 50), 0, (64, 64), (80, 30, 100, 50)),
        ((0, 0, 100, 50), 9, (64, 64), (0, 0, 100, 50)),
    ],
)
def test_the_part_has_the_shape_that_is_drawn(
    box: tuple[int, int, int, int], padding: int, size: tuple[int, int], wanted: tuple[int, int, int, int]
) -> None:
    image, mask = striped(100, 50), masked((100, 50), box)
    part = Inpainting(part=True, padding=padding)
    found = prepared_with_mask(image, mask, size, 0, part, lambda: (image, mask))
    assert found.put_back is not None
    assert found.put_back.box == wanted
    assert np.array_equal(np.asarray(found.image), np.asarray(image.crop(wanted)))
    assert found.mask is not None
    assert np.array_equal(np.asarray(found.mask), np.asarray(mask.crop(wanted)))


@pytest.mark.parametrize("blur", [(0, 0), (4, 4), (6, 1)])
def test_a_drawn_part_is_put_back(blur: tuple[int, int]) -> None:
    image, mask = striped(100, 50), masked((100, 50), (40, 20, 60, 40))
    chunks, file = PngInfo(), io.BytesIO()
    chunks.add_itxt("parameters", "Größe")
    Image.new("RGB", (64, 64), "white").save(file, "PNG", pnginfo=chunks)
    put_back = PutBack(lambda: (image, mask), Inpainting(part=True, blur=blur), (40, 20, 60, 40), (100, 50))
    (data,) = put_back([file.getvalue()], Output())
    with Image.open(io.BytesIO(data)) as whole:
        assert whole.text == {"parameters": "Größe"}  # type: ignore[attr-defined]
        pixels = np.asarray(whole).astype(float)
    soft = np.asarray(mask.filter(ImageFilter.GaussianBlur(blur)) if any(blur) else mask) / 255
    drawn = np.asarray(image).astype(float)
    drawn[20:40, 40:60] = 255
    wanted = soft[..., None] * drawn + (1 - soft[..., None]) * np.asarray(image)
    assert np.abs(pixels - wanted).max() <= 1
    far = soft == 0
    assert np.array_equal(pixels[far], np.asarray(image)[far]), "to the bit"
    (jpeg,) = put_back([file.getvalue()], Output("jpeg"))
    assert Image.open(io.BytesIO(jpeg)).format == "JPEG"


def test_masks_that_cannot_be_used() -> None:
    image = striped(100, 50)
    for mask, told in ((Image.new("L", (50, 100), 255), "the same size"), (Image.new("L", (100, 50)), "dark")):
        with pytest.raises(InputError, match=told):
            prepared_with_mask(image, mask, (64, 64), 0, Inpainting(), lambda mask=mask: (image, mask))
