"""Pictures and masks in C++ become what `latents/given_images.py` makes of them, and are refused with its words."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support.native import probe
from support.probe_arguments import Pixels, address, error_of, integer, pixels, size

from latentrt.runtime.errors import InputError
from latentrt.runtime.latents import GivenImages, ImageInput

CHANNELS, FACTOR = 4, 8
Array = NDArray[Any]


@dataclass
class Ours:
    """What the probe wrote."""

    pixels: Array
    mask: Array
    latent_mask: Array
    masked: Array
    latents: Array
    rows: NDArray[np.int64]
    error: str
    size: tuple[int, int]


def ours(
    images: Sequence[Array] | Any = (),
    masks: Sequence[Array] | Any = (),
    latents: Array | None = None,
    *,
    to: tuple[int, int] = (0, 0),
    prompts: int = 1,
    per_prompt: int = 1,
) -> Ours:
    listed, masked = (given if hasattr(given, "_type_") else pixels(given) for given in (images, masks))
    count, (height, width) = max(len(images), 1 if latents is None else len(latents)), to
    sides, small = (count, height, width), (count, 1, height // FACTOR, width // FACTOR)
    result = Ours(
        np.full((*sides, 3), np.nan, np.float32),
        np.full((count, 1, height, width), np.nan, np.float32),
        np.full(small, np.nan, np.float32),
        np.full((*sides, 3), np.nan, np.float32),
        np.zeros(0 if latents is None else latents.shape, np.float32),
        np.full(prompts * per_prompt, -1),
        "",
        (0, 0),
    )
    wanted = np.array(to, np.int64)
    result.error = error_of(
        lambda error: probe().probe_given_images(
            listed, size(len(images)), masked, size(len(masks)), address(latents),
            size(0 if latents is None else latents.size), integer(CHANNELS), integer(FACTOR), size(prompts),
            size(per_prompt), address(wanted), address(result.pixels), address(result.mask),
            address(result.latent_mask), address(result.masked), address(result.latents), address(result.rows), error,
        )
    )  # fmt: skip
    result.size = (int(wanted[0]), int(wanted[1]))
    return result


def theirs(
    images: Any, masks: Any = None, *, to: tuple[int, int], prompts: int = 1, per_prompt: int = 1
) -> ImageInput | None:
    given = GivenImages(images, masks or None, CHANNELS)
    return given.fitted(*to, factor=FACTOR, prompts=prompts, per_prompt=per_prompt)


def picture(height: int, width: int, channels: int = 3, seed: int = 0) -> NDArray[np.uint8]:
    shape = (height, width) if channels == 1 else (height, width, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def shape_of_mask(height: int, width: int, channels: int = 1) -> NDArray[np.uint8]:
    y, x = np.ogrid[:height, :width]
    inside = (y - height / 2) ** 2 + (x - width / 3) ** 2 < (height / 3) ** 2
    mask = np.where(inside, 255, 0).astype(np.uint8)
    if channels == 1:
        return mask
    colours = np.stack([mask, 255 - mask, mask // 2, 100 + mask // 2][:channels], -1)
    return np.ascontiguousarray(colours)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("mask_channels", [1, 3, 4])
@pytest.mark.parametrize("to", [(64, 48), (40, 104), (72, 88)], ids=str)
def test_pictures_and_masks_equal_python(channels: int, mask_channels: int, to: tuple[int, int]) -> None:
    images, masks = [picture(72, 88, channels)], [shape_of_mask(50, 70, mask_channels)]
    reference, result = theirs(images, masks, to=to), ours(images, masks, to=to)
    assert reference is not None
    assert not result.error
    np.testing.assert_array_equal(result.pixels, reference.pixels)
    np.testing.assert_array_equal(result.mask, reference.mask)
    np.testing.assert_array_equal(result.latent_mask, reference.latent_mask(FACTOR))
    np.testing.assert_array_equal(result.masked, reference.masked_pixels())
    assert 0 < result.mask.mean() < 1


@pytest.mark.parametrize(
    ("count", "masks", "prompts", "per_prompt"),
    [(1, 1, 1, 1), (1, 0, 2, 3), (2, 1, 2, 3), (2, 2, 2, 1), (6, 6, 2, 3), (6, 1, 3, 2), (3, 3, 3, 4)],
)
def test_each_image_gets_its_picture(count: int, masks: int, prompts: int, per_prompt: int) -> None:
    images = [picture(24 + 8 * i, 32, seed=i) for i in range(count)]
    given = [shape_of_mask(30 + i, 40) for i in range(masks)]
    reference = theirs(images, given, to=(32, 40), prompts=prompts, per_prompt=per_prompt)
    result = ours(images, given, to=(32, 40), prompts=prompts, per_prompt=per_prompt)
    assert reference is not None
    assert not result.error
    np.testing.assert_array_equal(result.rows, reference.rows)
    np.testing.assert_array_equal(result.pixels, reference.pixels)
    if masks:
        np.testing.assert_array_equal(result.mask, reference.mask)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("most", [1, 2, 127, 128])
def test_masks_of_zero_and_one_are_black_and_white(channels: int, most: int) -> None:
    mask = shape_of_mask(40, 40, channels) // 128 * most
    images = [picture(40, 40)]
    reference, result = theirs(images, [mask.astype(np.uint8)], to=(40, 40)), ours(images, [mask], to=(40, 40))
    assert reference is not None
    np.testing.assert_array_equal(result.mask, reference.mask)
    if channels == 1:
        assert bool(result.mask.any()) == (most in (1, 128))


def test_rows_may_have_gaps() -> None:
    whole = picture(33, 40)
    part = whole[:, :29]
    structs = (Pixels * 1)(Pixels(whole.ctypes.data, 33, 29, 3, 40 * 3))
    reference, result = theirs([np.ascontiguousarray(part)], to=(16, 24)), ours(structs, to=(16, 24))
    assert reference is not None
    np.testing.assert_array_equal(result.pixels, reference.pixels)


def test_latents_are_taken_as_they_are() -> None:
    latents = np.random.default_rng(3).standard_normal((2, CHANNELS, 5, 9), np.float32)
    reference = theirs(latents, to=(40, 72), prompts=2, per_prompt=2)
    result = ours(latents=latents, to=(40, 72), prompts=2, per_prompt=2)
    assert reference is not None
    assert not result.error
    np.testing.assert_array_equal(result.latents, reference.latents)
    np.testing.assert_array_equal(result.rows, reference.rows)


@pytest.mark.parametrize("sides", [(64, 64), (71, 100), (8, 8), (9, 1000)], ids=str)
def test_default_size_is_that_of_the_picture(sides: tuple[int, int]) -> None:
    images = [picture(*sides), picture(16, 16)]
    assert ours(images).size == GivenImages(images, None, CHANNELS).size(FACTOR)
    assert ours().size == (0, 0)


@pytest.mark.parametrize(
    ("images", "masks", "to", "prompts"),
    [
        ([picture(7, 100)], [], (0, 0), 1),
        ([], [shape_of_mask(9, 9)], (32, 32), 1),
        ([picture(20, 20)] * 3, [], (32, 32), 2),
        ([picture(20, 20)] * 3, [shape_of_mask(9, 9)] * 2, (32, 32), 3),
    ],
)
def test_refusals_are_those_of_python(
    images: list[Array], masks: list[Array], to: tuple[int, int], prompts: int
) -> None:
    def refused() -> None:
        given = GivenImages(images or None, masks or None, CHANNELS)
        if not any(to):
            given.size(FACTOR)
        given.fitted(*to, factor=FACTOR, prompts=prompts, per_prompt=1)

    with pytest.raises(InputError) as reference:
        refused()
    said = str(reference.value).replace("mask_image needs an image: pass image=", "masks needs an image: pass images")
    assert ours(images, masks, to=to, prompts=prompts).error == said


def test_a_mask_in_the_alpha_channel_is_refused() -> None:
    mask = np.full((30, 30, 4), 200, np.uint8)
    mask[:10, :, 3] = 0
    with pytest.raises(InputError) as reference:
        theirs([picture(30, 30)], [mask], to=(32, 32))
    error = ours([picture(30, 30)], [mask], to=(32, 32)).error
    assert error.startswith("masks[0] has one colour and its shape in the alpha channel. Pass a grey image")
    assert error[len("masks[0]") : 100] == str(reference.value)[len("mask_image") : 102]
    mask[:, :, 3] = 255  # opaque: all of it is drawn anew
    assert ours([picture(30, 30)], [mask], to=(32, 32)).mask.all()
    mask[:10, :, 3], mask[0, 0, 0] = 0, 0  # two colours
    assert not ours([picture(30, 30)], [mask], to=(32, 32)).error


@pytest.mark.parametrize(
    ("sides", "stride", "said"),
    [
        ((0, 5, 3), 0, "images[0] has 5x0 pixels of 3 channels: expected at least 1x1 pixels of 1, 3 or 4 channels"),
        ((5, -1, 3), 0, "images[0] has -1x5 pixels of 3 channels: expected at least 1x1 pixels of 1, 3 or 4 channels"),
        ((5, 5, 2), 0, "images[0] has 5x5 pixels of 2 channels: expected at least 1x1 pixels of 1, 3 or 4 channels"),
        ((5, 5, 3), 14, "images[0] has a stride of 14 bytes: expected 0, or at least 15"),
        (
            (2**13 + 1, 2**13, 3),
            0,
            "images[0] has 8192x8193 pixels: expected at most 67,108,864; set LATENTRT_MAX_PIXELS to raise the limit",
        ),
        (
            (2**31 - 1, 2**31 - 1, 4),
            0,
            "images[0] has 2147483647x2147483647 pixels: expected at most 67,108,864; set LATENTRT_MAX_PIXELS to raise "
            "the limit",
        ),
    ],
)
def test_hostile_sizes_are_refused_before_they_are_read(sides: tuple[int, int, int], stride: int, said: str) -> None:
    structs = (Pixels * 1)(Pixels(1, *sides, stride))
    assert ours(structs, to=(32, 32)).error == said


def test_missing_memory_is_refused() -> None:
    structs = (Pixels * 1)(Pixels(None, 5, 5, 3, 0))
    assert ours(structs, to=(32, 32)).error == "images[0] has no data"


def test_too_many_pictures_are_refused() -> None:
    with pytest.raises(InputError) as reference:
        GivenImages([picture(8, 8)] * 1025, None, CHANNELS)
    assert ours([picture(8, 8)] * 1025, to=(8, 8)).error == str(reference.value).replace("image has", "images has")


def test_latents_that_do_not_fit_are_refused() -> None:
    latents = np.zeros((1, CHANNELS, 4, 4), np.float32)
    assert "64 numbers, which are not 1 to 1024 times 4x3x4" in ours(latents=latents, to=(24, 32)).error
    latents[0, 0, 0, 0] = np.inf
    assert ours(latents=latents, to=(32, 32)).error == "image_latents has NaN or infinity"
    masks = [shape_of_mask(9, 9)]
    said = "masks needs pixels, but image_latents has latents: decode them first"
    assert ours(masks=masks, latents=latents, to=(32, 32)).error == said
    said = "images and image_latents: pass one of them"
    assert ours([picture(9, 9)], latents=latents, to=(32, 32)).error == said
