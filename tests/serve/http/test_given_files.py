"""Pictures and arrays that clients send: what is read, and files that hurt."""

import base64
import io
import struct
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator

import httpx
import numpy as np
import pytest
from PIL import Image
from support.fake_service import FakeService, picture_bytes, served

from latentrt.runtime.errors import InputError
from latentrt.serve.http.app import make_app
from latentrt.serve.http.given_files import (
    bytes_of_base64,
    decoded_files,
    fitted,
    from_bytes,
    picture,
    transparent_as_white,
)

GENERATIONS, EDITS = "/v1/images/generations", "/v1/images/edits"
PIXELS = 1 << 24


@pytest.fixture
def service() -> FakeService:
    return FakeService()


@pytest.fixture
def client(service: FakeService) -> Iterator[httpx.Client]:
    with served(make_app(service)) as address, httpx.Client(base_url=address, timeout=30) as client:
        yield client


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_header(width: int, height: int, *more: bytes) -> bytes:
    """A PNG file that says it is large."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(bytes(1 << 16))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(more) + data


def icon(picture: bytes) -> bytes:
    """An icon that says it is small."""
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(picture), 22) + picture


def npy(header: bytes) -> bytes:
    padded = header.ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(padded)) + padded


def zipped(data: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("picture.png", data)
    return file.getvalue()


HOSTILE = {
    "bomb": png_header(50_000, 50_000),
    "bomb in text": png_header(64, 64, *[chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(900_000)))] * 200),
    "bomb in an icon": icon(png_header(50_000, 50_000)),
    "truncated": picture_bytes(128, 128, 1)[:60],
    "text": b"not a picture at all",
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "zip": zipped(bytes(1 << 24)),
    "empty": b"",
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
    "pickle": npy(b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }"),
    "huge array": npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000, 1000000), }"),
    "huge numbers": npy(b"{'descr': '|V1000000', 'fortran_order': False, 'shape': (1000000,), }"),
    "array of negative size": npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (-1, -1), }"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_picture_fails_alone(client: httpx.Client, kind: str) -> None:
    start = time.monotonic()
    answer = client.post(GENERATIONS, json={"prompt": "a star", "image": base64_of(HOSTILE[kind])})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["message"].startswith("image")
    assert client.post(EDITS, data={"prompt": "a"}, files={"image": ("x.png", HOSTILE[kind])}).status_code == 400
    assert time.monotonic() - start < 5
    assert client.post(GENERATIONS, json={"prompt": "a star"}).status_code == 200


def test_a_picture_is_limited_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(_: object) -> None:
        raise AssertionError("the picture was decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    with pytest.raises(InputError, match="has 128x128 pixels: expected at most 100"):
        picture("image", picture_bytes(128, 128, 1), pixels=100)


def test_pictures_of_one_call_are_limited_together() -> None:
    small = base64_of(picture_bytes(100, 100, 1))
    assert len(decoded_files({"image": [small] * 4}, pixels=10_000, pictures=10)["image"]) == 4
    for options in ({"image": [small] * 5}, {"image": [small] * 4, "mask_image": small}):
        with pytest.raises(InputError, match="pixels: expected at most 0"):
            decoded_files(options, pixels=10_000, pictures=10)
    with pytest.raises(InputError, match="11 pictures: expected at most 10"):
        decoded_files({"image": ["not even base64"] * 11}, pixels=10_000, pictures=10)


@pytest.mark.parametrize("size", [0, 1, 2, 3, (3 << 18) - 1, 3 << 18, (3 << 18) + 1, 1 << 21])
def test_base64_is_read_in_parts(size: int) -> None:
    data = bytes(range(256)) * (size // 256 + 1)
    text = base64_of(data[:size])
    assert bytes_of_base64("image", text) == data[:size]
    assert bytes_of_base64("image", f"data:image/png;base64,{text}") == data[:size]


@pytest.mark.parametrize(
    "text", ["a", "ab", "!!!!", "YQ==YQ==", "A" * ((1 << 20) - 2) + "==" + "AAAA", "A" * (1 << 20) + "A", "AAAA\n"]
)
def test_what_is_not_base64_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="image: expected base64"):
        bytes_of_base64("image", text)


def test_an_array_is_read() -> None:
    array, file = np.arange(24, dtype=np.float32).reshape(1, 4, 2, 3), io.BytesIO()
    np.save(file, array)
    assert np.array_equal(from_bytes("latents", file.getvalue(), pixels=PIXELS), array)
    with pytest.raises(InputError, match="its length is not that of"):
        from_bytes("latents", file.getvalue() + b"x", pixels=PIXELS)


def test_pictures_in_json(client: httpx.Client, service: FakeService) -> None:
    mask = io.BytesIO()
    Image.new("L", (128, 128), 255).save(mask, "PNG")
    text = "data:image/png;base64," + base64_of(picture_bytes(128, 128, 1))
    body = {"prompt": "a star", "image": text, "mask": base64_of(mask.getvalue()), "strength": 0.4}
    assert client.post(GENERATIONS, json=body).status_code == 200
    request = service.tickets[0].job.request
    assert request.image is not None
    assert request.image.mask is not None


@pytest.mark.parametrize(
    ("mask", "redrawn"),
    [
        (lambda: Image.new("RGBA", (2, 2), (255, 255, 255, 0)), 255),
        (lambda: Image.new("LA", (2, 2), (0, 64)), 191),
        (lambda: Image.new("L", (2, 2), 200), 200),
        (lambda: Image.new("1", (2, 2), 1), 1),
    ],
)
def test_masks_of_openai_are_turned(mask: Callable[[], Image.Image], redrawn: int) -> None:
    assert np.asarray(transparent_as_white(mask())).max() == redrawn


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_a_mask_that_is_opaque_everywhere_is_refused(mode: str) -> None:
    with pytest.raises(InputError, match="opaque everywhere"):
        transparent_as_white(Image.new("L", (4, 2), 255).convert(mode))


@pytest.mark.parametrize("value", [np.inf, np.nan, -1e30])
def test_arrays_hold_values_that_models_can_work_with(value: float) -> None:
    file = io.BytesIO()
    np.save(file, np.array([[0.5, value]], np.float32))
    with pytest.raises(InputError, match="latents has values that are not finite, or beyond"):
        from_bytes("latents", file.getvalue(), pixels=100)


def test_a_photo_is_upright(client: httpx.Client) -> None:
    photo, file = Image.new("RGB", (384, 256), (255, 0, 0)), io.BytesIO()
    photo.getexif()[0x112] = 6  # the camera was held upright
    photo.save(file, "JPEG", exif=photo.getexif())
    mask = io.BytesIO()
    Image.new("RGBA", (256, 384)).save(mask, "PNG")
    files = {"image": ("photo.jpg", file.getvalue()), "mask": ("mask.png", mask.getvalue())}
    answer = client.post(EDITS, data={"prompt": "a star"}, files=files)
    assert answer.status_code == 200, answer.text
    assert answer.json()["size"] == "128x192"


@pytest.mark.parametrize("name", ["image", "mask", "mask_image", "latents"])
def test_a_form_has_pictures_as_files(client: httpx.Client, name: str) -> None:
    picture = picture_bytes(128, 128, 1)
    answer = client.post(EDITS, data={"prompt": "a", name: base64_of(picture)}, files={"image": ("a.png", picture)})
    assert answer.status_code == 400, "ignored"
    assert answer.json()["error"]["param"] == name


def noise(mode: str, width: int, height: int) -> Image.Image:
    levels = np.random.default_rng(5).integers(0, 256, (height, width, 4), dtype=np.uint8)
    if mode == "I;16":
        return Image.fromarray(levels[..., 0].astype(np.uint16) * 257)
    return Image.fromarray(levels).convert("RGB").convert(mode)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "YCbCr", "I;16"])
@pytest.mark.parametrize("several", [False, True])
def test_pictures_wait_at_the_size_that_is_drawn(service: FakeService, mode: str, several: bool) -> None:
    model, image, mask = service.models["shapes"], noise(mode, 700, 500), noise("L", 300, 900)
    given = {"image": [image] * 2, "mask_image": [mask]} if several else {"image": image, "mask_image": mask}
    options = {**given, "width": 192, "height": 128, "seed": 3, "num_images_per_prompt": 2}
    before = model.request("a star", options)
    request = fitted(before)
    pictures = [request.options["image"], request.options["mask_image"]]
    assert {one.size for given in pictures for one in (given if several else [given])} == {(192, 128)}
    again = model.request("a star", {**options, "image": pictures[0], "mask_image": pictures[1]})
    assert before.image is not None
    assert again.image is not None
    assert before.image.pixels is not None
    assert np.array_equal(again.image.pixels, before.image.pixels)
    assert np.array_equal(again.image.mask, before.image.mask)
    assert np.ptp(before.image.mask) == 1
    assert fitted(again).options["image"] is pictures[0], "what is small enough stays"
