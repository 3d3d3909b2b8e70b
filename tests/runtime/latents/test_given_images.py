"""Input images: the same result as diffusers' image processor, and errors for invalid ones."""

import argparse
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffusers.image_processor import VaeImageProcessor
from PIL import Image, ImageOps
from support.exports import SHAPES

from latentrt.runtime import InputError, Pipeline
from latentrt.runtime.cli.flags import add_option_flags, given_options
from latentrt.runtime.cli.main import main
from latentrt.runtime.latents import GivenImages, ImageInput

RANDOM = np.random.default_rng(0)
BYTES = RANDOM.integers(0, 256, (50, 67, 3), dtype=np.uint8)


def prepared(
    image: Any, mask: Any = None, size: tuple[int, int] = (40, 72), prompts: int = 1, each: int = 1
) -> ImageInput:
    given = GivenImages(image, mask, 4).fitted(*size, factor=8, prompts=prompts, per_prompt=each)
    assert given is not None
    return given


def reference(image: Any, size: tuple[int, int] = (40, 72), **options: Any) -> np.ndarray:
    """diffusers' (n, C, H, W) as (n, H, W, C)."""
    tensor = VaeImageProcessor(vae_scale_factor=8, **options).preprocess(image, height=size[0], width=size[1])
    return tensor.permute(0, 2, 3, 1).numpy()


PICTURES: dict[str, Any] = {
    "RGB": Image.fromarray(BYTES),
    "L": Image.fromarray(BYTES[:, :, 0]),
    "P": Image.fromarray(BYTES).quantize(16),
    "RGBA": Image.fromarray(np.dstack([BYTES, BYTES[:, :, 0]])),
    "floats": BYTES.astype(np.float32) / 255,
}


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_are_prepared_as_by_diffusers(name: str) -> None:
    image = PICTURES[name]
    # Other modes are first converted to RGB, as in diffusers' load_image.
    expected = reference(image.convert("RGB") if isinstance(image, Image.Image) else image[None])
    pixels = prepared(image).pixels
    assert pixels is not None
    assert pixels.dtype == np.float32
    assert np.abs(pixels - expected).max() < 1e-6


def test_arrays_of_bytes_and_files_are_pictures(tmp_path: Path) -> None:
    expected = prepared(PICTURES["RGB"]).pixels
    Image.fromarray(BYTES).save(tmp_path / "a.png")
    for image in (BYTES, tmp_path / "a.png", str(tmp_path / "a.png"), [BYTES], BYTES[None]):
        assert np.array_equal(prepared(image).pixels, expected)


def test_cameras_may_be_held_upright(tmp_path: Path) -> None:
    for orientation in (3, 6, 8):
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(BYTES).save(tmp_path / "a.png", exif=exif)
        upright = ImageOps.exif_transpose(Image.open(tmp_path / "a.png"))
        given = GivenImages(tmp_path / "a.png", None, 4)
        assert given.size(8) == (upright.height // 8 * 8, upright.width // 8 * 8)
        assert np.array_equal(prepared(tmp_path / "a.png").pixels, prepared(upright).pixels)
    assert given.size(8) == (64, 48)


MASKS: dict[str, Any] = {
    "L": Image.fromarray(BYTES[:, :, 0]),
    "RGB": Image.fromarray(BYTES),
    "1": Image.fromarray(BYTES[:, :, 0]).convert("1"),
    "floats": BYTES[:, :, 0].astype(np.float32) / 255,
}


@pytest.mark.parametrize("name", MASKS)
def test_masks_are_prepared_as_by_diffusers(name: str) -> None:
    image = MASKS[name]
    options = {"do_normalize": False, "do_binarize": True, "do_convert_grayscale": True}
    expected = reference(image[None] if isinstance(image, np.ndarray) else image, **options)
    given = prepared(PICTURES["RGB"], image)
    assert given.mask is not None
    assert np.array_equal(given.mask[:, 0], expected[:, :, :, 0])
    assert given.latent_mask(8).shape == (1, 1, 5, 9)
    bits = BYTES[:, :, 0] > 127
    assert np.array_equal(prepared(BYTES, bits).mask, prepared(BYTES, Image.fromarray(np.uint8(bits) * 255)).mask)


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, bool])
def test_masks_of_zeros_and_ones_are_taken_as_such(dtype: type, tmp_path: Path) -> None:
    """Such as labels and comparisons give; diffusers takes such arrays so."""
    mask = (BYTES[:, :, 0] > 150).astype(dtype)
    processor = VaeImageProcessor(vae_scale_factor=8, do_normalize=False, do_binarize=True, do_convert_grayscale=True)
    expected = processor.preprocess(mask.astype(np.uint8), height=40, width=72)[:, 0].numpy()
    image = Image.new("RGB", (72, 40))
    got = prepared(image, mask.astype(dtype)).mask
    floats = prepared(image, mask.astype(np.float32)).mask
    assert got is not None
    assert floats is not None
    assert np.array_equal(floats[:, 0], expected)
    assert 0.2 < got.mean() < 0.6
    assert np.array_equal(got, prepared(image, Image.fromarray((mask > 0).astype(np.uint8) * 255)).mask)
    Image.fromarray(mask.astype(np.uint8)).save(tmp_path / "labels.png")
    assert np.array_equal(got, prepared(image, tmp_path / "labels.png").mask)


def test_grey_of_16_bits_is_scaled_and_not_clipped(tmp_path: Path) -> None:
    deep = RANDOM.integers(0, 65536, (40, 72), dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert Image.open(tmp_path / "deep.png").mode.startswith("I")
    pixels, mask = (getattr(prepared(tmp_path / "deep.png", tmp_path / "deep.png"), n) for n in ("pixels", "mask"))
    expected = np.repeat(deep[:, :, None], 3, 2) / 65535
    assert np.abs((pixels[0] + 1) / 2 - expected).max() < 0.51 / 255
    assert np.array_equal(mask[0, 0] == 1, np.rint(deep / 257) >= 128)


def test_each_prompt_may_have_its_picture() -> None:
    two = [PICTURES["RGB"], PICTURES["L"]]
    assert prepared(two, prompts=2, each=3).rows.tolist() == [0, 0, 0, 1, 1, 1]
    assert prepared(two[0], prompts=2, each=2).rows.tolist() == [0, 0, 0, 0]
    assert prepared(two * 2, prompts=2, each=2).rows.tolist() == [0, 1, 2, 3]
    with pytest.raises(InputError, match="2 images for 3 prompts"):
        prepared(two, prompts=3)
    with pytest.raises(InputError, match="3 masks for 2 images"):
        prepared(two, [MASKS["L"]] * 3, prompts=2)


def png(width: int, height: int) -> bytes:
    """A PNG of a few bytes that declares a large size."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"")),
        (b"IEND", b""),
    ]
    body = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


@pytest.mark.parametrize("side", [10_000, 60_000])
def test_bombs_are_refused(tmp_path: Path, side: int) -> None:
    (tmp_path / "bomb.png").write_bytes(png(side, side))
    with pytest.raises(InputError, match=r"bomb.png would decompress to more than [\d,]+ pixels: make it smaller"):
        GivenImages(tmp_path / "bomb.png", None, 4)


def test_a_single_pixel_needs_a_size() -> None:
    with pytest.raises(InputError, match="1x1 pixels; expected at least 8x8: pass height and width"):
        GivenImages(BYTES[:1, :1], None, 4).size(8)
    pixels = prepared(BYTES[:1, :1], size=(16, 8)).pixels
    assert pixels is not None
    assert np.allclose(pixels, BYTES[0, 0] / 127.5 - 1, atol=1e-6)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (Path("missing.png"), "missing.png does not exist"),
        (Path(__file__), "is not an image that Pillow can read"),
        (7, "image has type int"),
        ([], "image has 0 pictures: expected 1 to"),
        (BYTES.astype(np.float32), "values from 0 to 255; expected floats from 0 to 1.* pass array / 255"),
        (BYTES / np.float32(127.5) - 1, r"expected floats from 0 to 1.* pass array / 2 \+ 0.5"),
        (BYTES.astype(np.uint16), "array of uint16; .* divide it by 65535"),
        (Image.fromarray(BYTES[:, :, 0].astype(np.float32)), "Pillow's mode F"),
        (Image.fromarray(BYTES[:, :, 0].astype(np.int32) * 1000), "expected 8 or 16 bits"),
        (BYTES.astype(np.int64), "array of int64"),
        (BYTES[:, :, :2], r"shape \(50, 67, 2\)"),
        (np.zeros((1, 4, 8, 16)) + np.nan, "latents with NaN or infinity"),
        (np.full((4, 4), np.nan), "values from nan to nan"),
    ],
)
def test_what_is_no_picture_is_refused(image: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        GivenImages(image, None, 4)


def test_a_cut_file_is_refused(tmp_path: Path) -> None:
    Image.fromarray(BYTES).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:2000])
    with pytest.raises(InputError, match=r"cut.png cannot be read"):
        GivenImages(tmp_path / "cut.png", None, 4)


@pytest.fixture(scope="module")
def pipe() -> Any:
    with Pipeline.load(SHAPES.bundle, device="cpu") as pipe:
        yield pipe


def test_latents_go_out_and_in(pipe: Pipeline) -> None:
    """Latents of a picture as `image` give the same result as the picture, except for the VAE's sampling."""
    call = {"num_inference_steps": 4, "strength": 0.5, "seed": 3, "output_type": "latent"}
    first = pipe("a red star", seed=1, num_inference_steps=4, height=64, width=96, output_type="latent")
    got = pipe("a red star", image=first.latents, **call).latents
    assert got.shape == first.latents.shape
    again = pipe("a red star", image=first.latents, latents=pipe_noise(3, got.shape), **call).latents
    assert np.array_equal(again, got)  # latents consume no random draws


def pipe_noise(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    from latentrt.runtime import TorchGenerator

    return TorchGenerator(seed).randn(shape)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strength": 0.5}, "pass image, or leave it out"),
        ({"image": BYTES, "strength": 0}, "strength=0: expected a number above 0, up to 1"),
        ({"image": BYTES, "strength": 1.5}, "above 0, up to 1"),
        ({"mask_image": BYTES}, "mask_image needs an image"),
        ({"image": BYTES, "height": 63}, "multiple of 8"),
        ({"original_size": (64, 64)}, "only SDXL does"),
    ],
)
def test_wrong_calls_are_refused(pipe: Pipeline, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        pipe.stream("a", **options)


def test_the_picture_says_how_much_was_drawn_anew(pipe: Pipeline) -> None:
    image = pipe("a star", image=BYTES, strength=0.5, num_inference_steps=4, seed=1).images[0]
    assert image.size == (64, 48)
    assert "Denoising strength: 0.5" in image.info["parameters"]


def test_flags_become_options() -> None:
    parser = argparse.ArgumentParser()
    add_option_flags(parser)
    assert given_options(parser.parse_args([])) == {}
    sizes = ["--original-size", "96", "64", "--negative-crops-coords-top-left", "3", "4"]
    assert given_options(parser.parse_args(["--image", "a.png", "--vae-tiling", *sizes])) == {
        "image": "a.png",
        "vae_tiling": True,
        "original_size": [96, 64],
        "negative_crops_coords_top_left": [3, 4],
    }


def test_latents_of_one_picture_are_the_start_of_another(pipe: Pipeline, tmp_path: Path) -> None:
    """On the command line, through .npy files."""
    noise, latents = tmp_path / "noise.npy", tmp_path / "new" / "star.npy"
    np.save(noise, RANDOM.standard_normal((1, 4, 6, 8)).astype(np.float32))
    size = ["--height", "48", "--width", "64", "--steps", "4", "--device", "cpu", "-o", str(tmp_path / "star.png")]
    first = ["generate", "a star", *size, "--latents", str(noise), "--save-latents", str(latents)]
    assert main(first) == 0
    call = {"num_inference_steps": 4, "output_type": "latent"}
    expected = pipe("a star", latents=np.load(noise), height=48, width=64, **call).latents
    np.testing.assert_allclose(np.load(latents), expected, rtol=0, atol=1e-5)
    again = ["generate", "a heart", *size, "--seed", "4", "--image", str(latents), "--strength", "0.5"]
    assert main([*again, "--save-latents", str(tmp_path / "heart.npy")]) == 0
    expected = pipe("a heart", image=np.load(latents), strength=0.5, seed=4, **call).latents
    np.testing.assert_allclose(np.load(tmp_path / "heart.npy"), expected, rtol=0, atol=1e-5)
    assert sorted(p.name for p in latents.parent.iterdir()) == ["star.npy"]


def test_files_that_hold_no_array_are_refused(pipe: Pipeline, tmp_path: Path) -> None:
    (tmp_path / "text.npy").write_text("no array")
    np.save(tmp_path / "pickled.npy", np.array([{}], object), allow_pickle=True)
    for name, message in (("text", "not a valid .npy"), ("pickled", "not a valid .npy"), ("none", "does not exist")):
        for option in ("latents", "image"):
            with pytest.raises(InputError, match=message):
                pipe.stream("a", **{option: str(tmp_path / f"{name}.npy")})
    assert main(["generate", "a", "--save-latents", str(tmp_path / "x.png")]) == 1


def test_a_mask_in_the_alpha_channel_is_refused_with_the_way_out() -> None:
    """Its grey is the same everywhere, so that everything or nothing would be drawn anew."""
    shape = np.zeros((16, 24, 4), np.uint8)
    shape[:, 9:, 3] = 255
    image = Image.fromarray(np.full((16, 24, 3), 90, np.uint8))
    with pytest.raises(InputError, match=r"shape in the alpha channel.*getchannel\('A'\)"):
        prepared(image, Image.fromarray(shape), (16, 24))
    drawn = shape.copy()
    drawn[:, 9:, :3] = 255  # white where it is opaque: nothing is doubtful
    prepared(image, Image.fromarray(drawn), (16, 24))
