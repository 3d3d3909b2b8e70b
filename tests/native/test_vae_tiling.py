"""Tiles of the VAE, and previews by a linear map, in C++."""

import ctypes
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support.native import probe
from support.probe_arguments import address, integer

from latentrt.runtime.latents import rgb_from_latents
from latentrt.runtime.latents.vae_tiling import Moments, tiled_decode, tiled_encode

Float32 = NDArray[np.float32]
CHANNELS = 4
Sides = ctypes.POINTER(ctypes.c_int64)
Encode = ctypes.CFUNCTYPE(None, ctypes.c_void_p, Sides, ctypes.c_void_p, ctypes.c_void_p)
Decode = ctypes.CFUNCTYPE(None, ctypes.c_void_p, Sides, ctypes.c_void_p, ctypes.c_void_p)


def array(pointer: int, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    count = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer((ctypes.c_byte * count).from_address(pointer), dtype).reshape(shape)


def decoded(latents: Float32, factor: int) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """Depends on where the tile ends, as a VAE does, so that blending shows."""
    wide = latents.transpose(0, 2, 3, 1)[..., :3].repeat(factor, 1).repeat(factor, 2)
    y, x = np.ogrid[: wide.shape[1], : wide.shape[2]]
    edge = np.minimum(y, 9)[..., None] + 3 * np.minimum(wide.shape[2] - x, 11)[..., None]
    images = np.clip(100 + 40 * wide + edge, 0, 255).astype(np.uint8)
    return images, (latents > 1.5).sum((1, 2, 3)).astype(np.int32)


def encoded(images: Float32, factor: int) -> tuple[Float32, Float32]:
    n, height, width, _ = images.shape
    blocks = images.reshape(n, height // factor, factor, width // factor, factor, 3).mean((2, 4), dtype=np.float32)
    y = np.arange(blocks.shape[1], dtype=np.float32)[:, None, None]
    mean = np.concatenate([blocks + y / 7, blocks[..., :1] - 1], -1).transpose(0, 3, 1, 2)
    return np.ascontiguousarray(mean), np.ascontiguousarray(mean[:, ::-1] * 2 - 3)


@pytest.mark.parametrize(("height", "width"), [(16, 16), (24, 40), (37, 20), (12, 61), (65, 17)])
@pytest.mark.parametrize(("tile", "factor"), [(16, 8), (20, 4)])
def test_decodes_as_python(height: int, width: int, tile: int, factor: int) -> None:
    latents = np.random.default_rng(height).standard_normal((2, CHANNELS, height, width), np.float32)

    def one(values: int, sides: Any, images: int, bad: int) -> None:
        shape = tuple(sides[:4])
        result, count = decoded(array(values, shape, np.float32), factor)
        array(images, result.shape, np.uint8)[:] = result
        array(bad, (shape[0],), np.int32)[:] = count

    images = np.zeros((2, height * factor, width * factor, 3), np.uint8)
    bad, shape = np.zeros(2, np.int32), np.array(latents.shape, np.int64)
    probe().probe_tiled_decode(
        address(latents), address(shape), integer(tile), integer(factor), Decode(one), address(images), address(bad)
    )
    reference, counts = tiled_decode(lambda part: decoded(part, factor), latents, tile=tile, factor=factor)
    np.testing.assert_array_equal(images, reference)
    np.testing.assert_array_equal(bad, counts)


@pytest.mark.parametrize("samples", [True, False])
@pytest.mark.parametrize(("height", "width"), [(16, 16), (24, 40), (37, 20), (12, 61)])
def test_encodes_as_python(height: int, width: int, samples: bool) -> None:
    tile, factor = 16, 8
    images = np.random.default_rng(5).random((2, height * factor, width * factor, 3), np.float32) * 2 - 1

    def one(values: int, sides: Any, mean: int, logvar: int) -> None:
        moments = encoded(array(values, tuple(sides[:4]), np.float32), factor)
        for pointer, result in zip((mean, logvar), moments, strict=True):
            array(pointer, result.shape, np.float32)[:] = result

    mean, logvar = (np.zeros((2, CHANNELS, height, width), np.float32) for _ in range(2))
    shape = np.array(images.shape, np.int64)
    probe().probe_tiled_encode(
        address(images), address(shape), integer(CHANNELS), integer(tile), integer(factor), Encode(one), address(mean),
        address(logvar if samples else None),
    )  # fmt: skip

    def ours(part: Float32) -> Moments:
        moments = encoded(part, factor)
        return moments if samples else (moments[0], None)

    reference = tiled_encode(ours, images, tile=tile, factor=factor)
    np.testing.assert_array_equal(mean, reference[0])
    if samples:
        np.testing.assert_array_equal(logvar, reference[1])
    else:
        assert reference[1] is None


@pytest.mark.parametrize(("channels", "factor"), [(4, 8), (16, 1), (3, 5)])
def test_previews_equal_python(channels: int, factor: int) -> None:
    rng = np.random.default_rng(channels)
    latents = rng.standard_normal((1, channels, 13, 29), np.float32) * 2
    latents[0, 0, 2, 3], latents[0, 1, 4, 5] = np.nan, np.inf
    matrix = np.concatenate([rng.normal(0, 0.2, (channels, 3)), [[0.5, 0.4, 0.6]]])
    image = np.zeros((13 * factor, 29 * factor, 3), np.uint8)
    shape = np.array(latents.shape[1:], np.int64)
    probe().probe_preview(address(latents), address(shape), address(matrix), integer(factor), address(image))
    reference = rgb_from_latents(latents, matrix.tolist(), factor=factor)[0]
    difference = np.abs(image.astype(int) - reference)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 1e-3
    assert not image[2 * factor, 3 * factor].any()
    assert image.std() > 20
