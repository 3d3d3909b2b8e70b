"""The server from a shell, as the documents show it."""

import base64
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.fake_service import FakeService, picture_bytes, served

from latentrt.serve.http.app import make_app
from latentrt.serve.http.config import HttpConfig
from latentrt.serve.http.keys import new_key

CURL = shutil.which("curl") or "curl"  # the tests need it
JSON = ("-H", "Content-Type: application/json")


@pytest.fixture
def service() -> FakeService:
    return FakeService()


@pytest.fixture
def address(service: FakeService) -> Iterator[str]:
    with served(make_app(service)) as address:
        yield address


def curl(*arguments: str, timeout: float = 20) -> tuple[int, bytes]:
    """Status and body."""
    command = [CURL, "-sS", "--noproxy", "*", "-w", "\n%{http_code}", *arguments]
    output = subprocess.run(command, capture_output=True, check=True, timeout=timeout).stdout
    body, _, status = output.rpartition(b"\n")
    return int(status), body


def test_generate(address: str) -> None:
    status, body = curl(f"{address}/v1/images/generations", *JSON, "-d", '{"prompt": "a star", "seed": 3}')
    assert status == 200
    assert base64.b64decode(json.loads(body)["data"][0]["b64_json"]) == picture_bytes(128, 128, 3)


@pytest.mark.parametrize("name", ["image", "image[]"])
def test_a_picture_from_a_picture(address: str, service: FakeService, tmp_path: Path, name: str) -> None:
    file = tmp_path / "photo.png"
    file.write_bytes(picture_bytes(300, 200, 9))
    form = ["-F", f"{name}=@{file}", "-F", "prompt=a star", "-F", "strength=0.5", "-F", "seed=[7, 9]", "-F", "n=2"]
    status, body = curl(f"{address}/v1/images/edits", *form)
    assert status == 200, body
    assert json.loads(body)["size"] == "192x128", "the size whose shape is most like the picture's"
    (ticket,) = service.tickets
    assert ticket.job.request.image is not None
    assert ticket.job.request.image.mask is None
    assert (ticket.job.request.seeds, ticket.job.request.strength) == ((7, 9), 0.5)


def test_stream(address: str) -> None:
    body = '{"prompt": "a star", "stream": true, "partial_images": 1, "n": 2, "num_inference_steps": 4}'
    status, text = curl("-N", f"{address}/v1/images/generations", *JSON, "-d", body)
    assert status == 200
    events = [part.split("\n") for part in text.decode().strip().split("\n\n")]
    kinds = ["partial_image", "completed", "completed"]
    assert [event[0] for event in events[:-1]] == [f"event: image_generation.{kind}" for kind in kinds]
    assert events[-1] == ["data: [DONE]"]
    partial, first, _ = (json.loads(event[1].removeprefix("data: ")) for event in events[:-1])
    facts = {"type", "b64_json", "created_at", "background", "output_format", "quality", "size"}
    assert partial.keys() == facts | {"partial_image_index"}
    assert first.keys() == facts | {"usage", "seed"}
    assert first["usage"]["input_tokens"] > 0
    assert first["usage"]["output_tokens"] == 4, "of one image"


def test_edits_in_a_stream(address: str, tmp_path: Path) -> None:
    file = tmp_path / "photo.png"
    file.write_bytes(picture_bytes(128, 128, 9))
    form = ["-F", f"image=@{file}", "-F", "prompt=a star", "-F", "stream=true", "-F", "partial_images=2"]
    status, text = curl("-N", f"{address}/v1/images/edits", *form)
    kinds = [line.partition(" ")[2] for line in text.decode().splitlines() if line.startswith("event: ")]
    assert (status, kinds) == (200, ["image_edit.partial_image"] * 2 + ["image_edit.completed"])


def test_a_key_as_bearer_and_as_password(service: FakeService, tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    key = new_key(file, "alice")
    with served(make_app(service, HttpConfig(keys=file))) as address:
        models = f"{address}/v1/models"
        assert curl(models)[0] == 401
        assert curl(models, "-H", f"Authorization: Bearer {key}")[0] == 200
        assert curl(models, "-u", f"alice:{key}")[0] == 200
        assert curl(models, "-u", f"{key}:alice")[0] == 401


def test_a_body_of_10_gb(address: str, tmp_path: Path) -> None:
    file = tmp_path / "zeros"
    with file.open("wb") as zeros:
        zeros.truncate(10 << 30)
    # curl asks before it sends, and is refused then
    command = ["-X", "POST", "-T", str(file), "-H", "Expect: 100-continue", "--expect100-timeout", "30"]
    status, body = curl(f"{address}/v1/images/generations", *command, timeout=60)
    assert (status, json.loads(body)["error"]["code"]) == (413, "body_too_large")


def test_a_form_that_comes_again_is_answered_again(address: str, service: FakeService, tmp_path: Path) -> None:
    file = tmp_path / "photo.png"
    file.write_bytes(picture_bytes(128, 128, 9))
    form = [
        "-H",
        "Idempotency-Key: k",
        "-F",
        f"image=@{file}",
        "-F",
        "prompt=a star",
    ]  # with another boundary each time
    first, again = (curl(f"{address}/v1/images/edits", *form) for _ in range(2))
    assert first == again
    assert first[0] == 200
    assert len(service.tickets) == 1
    assert curl(f"{address}/v1/images/edits", *form, "-F", "strength=0.3")[0] == 409
    file.write_bytes(picture_bytes(128, 128, 10))
    assert curl(f"{address}/v1/images/edits", *form)[0] == 409
