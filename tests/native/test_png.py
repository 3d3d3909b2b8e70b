"""PNG files that C++ writes: Pillow reads the same pixels and texts as from its own, and they are no larger."""

import ctypes
import heapq
import io
import struct
import zlib
from collections.abc import Mapping

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from support.native import probe
from support.probe_arguments import address, integer, size

from latentrt.runtime.image import pil_from_arrays

Bytes = NDArray[np.uint8]
TEXTS = {
    "parameters": "a star\nNegative prompt: étoile\nSteps: 3, Seed: 1",
    "latentrt": '{"prompt": "赤い星 😀 \\"quoted\\""}',
}


def png(image: Bytes, texts: Mapping[str, str] = {}) -> bytes:
    height, width, _ = image.shape
    words = [part.encode() for pair in texts.items() for part in pair]
    listed = (ctypes.c_char_p * len(words))(*words)
    out = np.zeros(2 * image.size + 100_000, np.uint8)
    write = probe().probe_png
    write.restype = ctypes.c_size_t
    length: int = write(
        address(image), integer(height), integer(width), listed, size(len(words)), address(out), size(out.size)
    )
    assert length <= out.size
    return out[:length].tobytes()


def of_pillow(image: Bytes, texts: Mapping[str, str] = {}) -> bytes:
    file = io.BytesIO()
    pil_from_arrays(image[None], [texts])[0].save(file, "PNG")
    return file.getvalue()


def chunks(file: bytes) -> list[tuple[bytes, bytes]]:
    """Type and content of each; checks the sums."""
    assert file[:8] == b"\x89PNG\r\n\x1a\n"
    result, place = [], 8
    while place < len(file):
        length, kind = struct.unpack_from(">I4s", file, place)
        content = file[place + 8 : place + 8 + length]
        assert zlib.crc32(kind + content) == struct.unpack_from(">I", file, place + 8 + length)[0]
        result.append((kind, content))
        place += length + 12
    return result


def natural(height: int, width: int, seed: int = 0) -> Bytes:
    """Noise with the spectrum of photographs: amplitudes fall with the frequency."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])
    frequency[0, 0] = 1
    planes = [np.fft.ifft2(np.fft.fft2(rng.standard_normal((height, width))) / frequency**1.3).real for _ in range(3)]
    image = np.stack([planes[0], planes[0] + planes[1] / 3, planes[0] + planes[2] / 3], -1)
    image = (image - image.min()) / np.ptp(image) * 255 + rng.normal(0, 1, image.shape)
    pixels: Bytes = np.clip(image, 0, 255).astype(np.uint8)
    return pixels


def images() -> dict[str, Bytes]:
    rng = np.random.default_rng(7)
    y, x = np.ogrid[:64, :200]
    gradient = np.stack([y + x, 255 - x + 0 * y, (y * x) % 256], -1).astype(np.uint8)
    return {
        "natural": natural(160, 224),
        "one pixel": np.array([[[1, 2, 3]]], np.uint8),
        "one row": rng.integers(0, 256, (1, 700, 3), np.uint8),
        "one column": rng.integers(0, 256, (700, 1, 3), np.uint8),
        "black": np.zeros((600, 500, 3), np.uint8),
        "grey": np.full((33, 900, 3), 128, np.uint8),
        "noise": rng.integers(0, 256, (150, 150, 3), np.uint8),
        "gradient": gradient,
        "tiles": np.tile(rng.integers(0, 256, (16, 16, 3), np.uint8), (20, 30, 1)),
        "two colours": (rng.integers(0, 2, (300, 300, 1), np.uint8) * np.array([255, 7, 90], np.uint8)).astype(
            np.uint8
        ),
        "repeats from afar": np.tile(rng.integers(0, 256, (13, 841, 3), np.uint8), (4, 1, 1)),
    }


@pytest.mark.parametrize("name", images())
def test_pillow_reads_the_same_pixels(name: str) -> None:
    image = np.ascontiguousarray(images()[name])
    with Image.open(io.BytesIO(png(image))) as opened:
        opened.verify()
    with Image.open(io.BytesIO(png(image))) as opened:
        assert opened.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(opened), image)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100))
def test_any_picture_comes_back(seed: int) -> None:
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 200, 2)
    levels = rng.integers(1, 257)
    image = rng.integers(0, levels, (height, width, 3)).astype(np.uint8)
    if seed % 3:
        image = np.ascontiguousarray(image.repeat(rng.integers(1, 9), 0).repeat(rng.integers(1, 9), 1))
    rows = zlib.decompress(dict(chunks(png(image)))[b"IDAT"])
    assert len(rows) == image.shape[0] * (image.shape[1] * 3 + 1)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png(image)))), image)


def test_chunks_are_those_of_pillow() -> None:
    image = natural(40, 56)
    ours, theirs = ([part for part in chunks(write(image, TEXTS)) if part[0] != b"IDAT"] for write in (png, of_pillow))
    assert ours == theirs
    assert [kind for kind, _ in chunks(png(image, TEXTS))] == [b"IHDR", b"iTXt", b"iTXt", b"IDAT", b"IEND"]


def test_pillow_reads_the_texts() -> None:
    with Image.open(io.BytesIO(png(natural(16, 16), TEXTS))) as opened:
        opened.load()
        assert getattr(opened, "text", None) == TEXTS


@pytest.mark.parametrize("name", ["natural", "black", "gradient", "tiles", "two colours", "noise"])
def test_files_are_hardly_larger_than_those_of_pillow(name: str) -> None:
    image = np.ascontiguousarray(images()[name])
    assert len(png(image)) <= 1.15 * len(of_pillow(image)) + 100


def test_a_large_natural_picture_is_no_larger_than_that_of_pillow() -> None:
    image = natural(512, 512, seed=3)
    assert len(png(image)) <= 1.02 * len(of_pillow(image))


def lengths(counts: list[int], longest: int) -> NDArray[np.uint8]:
    given, out = np.array(counts, np.uint32), np.zeros(len(counts), np.uint8)
    probe().probe_prefix_lengths(address(given), size(len(counts)), longest, address(out))
    return out


def fibonacci(count: int) -> list[int]:
    """The counts that make Huffman's tree deepest."""
    numbers = [1, 1]
    while len(numbers) < count:
        numbers.append(numbers[-1] + numbers[-2])
    return numbers


@pytest.mark.parametrize(
    ("counts", "longest"), [(fibonacci(40), 15), (fibonacci(19), 7), ([0, 5, 0], 15), ([0] * 30, 15)]
)
def test_words_are_no_longer_than_deflate_allows(counts: list[int], longest: int) -> None:
    words = lengths(counts, longest)
    assert words.max() <= longest
    assert sum(2.0**-bits for bits in words.tolist() if bits) == 1
    assert all(bits for bits, count in zip(words, counts, strict=True) if count)
    assert np.count_nonzero(words) == max(2, np.count_nonzero(counts))


@pytest.mark.parametrize("seed", range(5))
def test_words_are_the_best_where_they_fit(seed: int) -> None:
    counts = np.random.default_rng(seed).integers(0, 5000, 286).tolist()
    heap, best = [count for count in counts if count], 0
    heapq.heapify(heap)
    while len(heap) > 1:
        joined = heapq.heappop(heap) + heapq.heappop(heap)
        best += joined
        heapq.heappush(heap, joined)
    assert int((lengths(counts, 15).astype(int) * counts).sum()) == best
