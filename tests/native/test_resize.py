"""Resizing in C++ is Pillow's Lanczos, and so are its conversions between grey, RGB and RGBA."""

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from support.native import probe
from support.probe_arguments import address, error_of, integer

RESIZED, RGB, GREY = range(3)
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
Bytes = NDArray[np.uint8]


def picture(height: int, width: int, channels: int, *, seed: int = 0, smooth: bool = False) -> Bytes:
    rng = np.random.default_rng([seed, height, width, channels])
    if smooth:
        y, x, c = np.ogrid[:height, :width, :channels]
        return np.asarray(127 + 127 * np.sin(y / 7 + c) * np.cos(x / 5 - c)).astype(np.uint8)
    return rng.integers(0, 256, (height, width, channels), np.uint8)


def converted(kind: int, given: Bytes, shape: tuple[int, ...]) -> Bytes:
    out = np.zeros(shape, np.uint8)
    sides = (integer(side) for side in (*given.shape, *shape[:2]))
    error = error_of(lambda e: probe().probe_bytes(kind, address(given), *sides, address(out), e))
    assert not error
    return out


def pil(given: Bytes) -> Image.Image:
    return Image.fromarray(given[:, :, 0] if given.shape[2] == 1 else given)


def array(image: Image.Image) -> Bytes:
    values = np.asarray(image)
    return values[:, :, None] if values.ndim == 2 else values


SIZES = [
    ((64, 64), (32, 32)),
    ((37, 53), (128, 96)),
    ((200, 31), (72, 88)),
    ((5, 7), (64, 8)),
    ((1, 1), (9, 16)),
    ((1, 300), (40, 8)),
    ((333, 222), (332, 223)),
    ((48, 80), (48, 16)),
    ((48, 80), (16, 80)),
    ((90, 60), (90, 60)),
    ((700, 900), (8, 8)),
]


@pytest.mark.parametrize("channels", MODES)
@pytest.mark.parametrize(("old", "new"), SIZES, ids=str)
@pytest.mark.parametrize("smooth", [False, True])
def test_resizes_as_pillow(channels: int, old: tuple[int, int], new: tuple[int, int], smooth: bool) -> None:
    given = picture(*old, channels, smooth=smooth)
    theirs = array(pil(given).resize((new[1], new[0]), Image.Resampling.LANCZOS))
    np.testing.assert_array_equal(converted(RESIZED, given, (*new, channels)), theirs)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(60))
def test_resizes_as_pillow_at_any_size(seed: int) -> None:
    rng = np.random.default_rng(seed)
    old, new = rng.integers(1, 400, 2), rng.integers(1, 400, 2)
    for channels in MODES:
        given = picture(int(old[0]), int(old[1]), channels, seed=seed)
        theirs = array(pil(given).resize((int(new[1]), int(new[0])), Image.Resampling.LANCZOS))
        np.testing.assert_array_equal(converted(RESIZED, given, (int(new[0]), int(new[1]), channels)), theirs)


def test_colours_that_are_transparent_do_not_bleed() -> None:
    given = np.zeros((16, 16, 4), np.uint8)
    given[:, :8] = (255, 0, 0, 255)
    given[:, 8:] = (0, 255, 0, 0)
    ours = converted(RESIZED, given, (8, 8, 4))
    assert not ours[:, :, 1].any()
    np.testing.assert_array_equal(ours, array(pil(given).resize((8, 8), Image.Resampling.LANCZOS)))


@pytest.mark.parametrize("channels", MODES)
@pytest.mark.parametrize(("kind", "mode"), [(RGB, "RGB"), (GREY, "L")])
def test_converts_as_pillow(channels: int, kind: int, mode: str) -> None:
    given = picture(63, 129, channels, seed=4)
    theirs = array(pil(given).convert(mode))
    np.testing.assert_array_equal(converted(kind, given, theirs.shape), theirs)


def test_every_colour_becomes_the_grey_of_pillow() -> None:
    levels = np.arange(0, 256, 5, dtype=np.uint8)
    given = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(levels.size, -1, 3)
    np.testing.assert_array_equal(converted(GREY, given, (*given.shape[:2], 1)), array(pil(given).convert("L")))


def test_slender_pictures_are_refused_before_memory_is_taken() -> None:
    given, out = np.zeros((1 << 21, 1, 1), np.uint8), np.zeros(1, np.uint8)
    sides = (integer(side) for side in (*given.shape, 16384, 16384))
    error = error_of(lambda e: probe().probe_bytes(RESIZED, address(given), *sides, address(out), e))
    assert error == "a picture of 1x2097152 pixels is too slender to become one of 16384x16384: resize it before"
