"""The Open Inference Protocol over a fake service: what is refused and why, and what answers look like."""

import base64
import re
import struct
import time
from collections import Counter
from collections.abc import Iterator
from random import Random
from typing import Any

import httpx
import numpy as np
import pytest
from support.fake_service import FakeRepository, FakeService, kserve_face, picture_bytes, served
from support.kserve import HEADER, INFER, PROMPT, binary_body, one, packed, refused, tensor
from tritonclient.http import InferenceServerClient, InferRequestedOutput

from latentrt.serve.http.app import make_app
from latentrt.serve.http.config import HttpConfig
from latentrt.serve.http.kserve import inference
from latentrt.serve.messages import RefusedError


@pytest.fixture
def service() -> FakeService:
    return FakeService()


@pytest.fixture
def repository(service: FakeService) -> FakeRepository:
    return FakeRepository(service)


@pytest.fixture
def http(service: FakeService, repository: FakeRepository) -> Iterator[httpx.Client]:
    config = HttpConfig(aliases={"sd": "shapes"}, body_bytes=1 << 20)
    with (
        served(make_app(service, config, faces=[kserve_face(service, repository)])) as address,
        httpx.Client(base_url=address, timeout=30) as client,
    ):
        yield client


def test_a_request_in_json(http: httpx.Client, service: FakeService) -> None:
    body = {
        "id": "42",
        "inputs": [{**PROMPT, "parameters": {"content_type": "str"}}, one("steps", "INT32", [3], [1, 1])],
        "parameters": {"seed": 300, "output_format": "webp", "priority": "batch", "timeout": 9_000_500},
        "outputs": [{"name": "image"}, {"name": "seed"}],
    }
    answer = http.post("/v2/models/sd/versions/1/infer", json=body)
    assert answer.json() == {
        "model_name": "shapes",
        "model_version": "1",
        "id": "42",
        "outputs": [
            {
                "name": "image",
                "datatype": "BYTES",
                "shape": [1],
                "data": [base64.b64encode(picture_bytes(128, 128, 300, "WEBP")).decode()],
            },
            {"name": "seed", "datatype": "INT64", "shape": [1], "data": [300]},
        ],
    }
    assert "denoise;dur=3.0" in answer.headers["Server-Timing"]
    job = service.tickets[0].job
    assert (job.request.num_inference_steps, job.priority, job.deadline) == (3, "batch", 9.001)


def test_without_outputs_there_are_image_and_seed(http: httpx.Client) -> None:
    outputs = http.post(INFER, json={"inputs": [PROMPT], "parameters": {"seed": 2**64 - 1}}).json()["outputs"]
    assert [(output["name"], output["shape"]) for output in outputs] == [("image", [1]), ("seed", [1])]
    assert outputs[1]["data"] == [-1]  # of the same bits


def test_pixels_in_json_are_flat(http: httpx.Client) -> None:
    body = {"inputs": [PROMPT], "parameters": {"seed": 258}, "outputs": [{"name": "pixels"}]}
    (output,) = http.post(INFER, json=body).json()["outputs"]
    assert output["shape"] == [1, 128, 128, 3]
    assert output["data"] == [2, 1, 0] * (128 * 128)


def test_many_pixels_are_binary_only(http: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "JSON_VALUES", 3 * 128 * 128)
    body: dict[str, Any] = {"inputs": [PROMPT], "outputs": [{"name": "pixels"}]}
    assert http.post(INFER, json=body).status_code == 200
    body["inputs"].append(one("num_images_per_prompt", "UINT8", [2]))
    assert "98,304 values: expected at most 49,152 in JSON; ask for it with binary_data" in refused(http, json=body)
    body["outputs"][0]["parameters"] = {"binary_data": True}
    assert http.post(INFER, json=body).status_code == 200


def test_some_outputs_may_be_binary(http: httpx.Client) -> None:
    client = InferenceServerClient(str(http.base_url).removeprefix("http://"))
    outputs = [InferRequestedOutput("seed", binary_data=False), InferRequestedOutput("image", binary_data=True)]
    result = client.infer("shapes", [tensor("prompt", ["a", "b"])], outputs=outputs, parameters={"seed": 7})
    seed, image = result.get_response()["outputs"]
    assert seed["data"] == [7, 8]
    assert "data" not in image
    expected = [base64.b64encode(picture_bytes(128, 128, value)) for value in (7, 8)]
    assert result.as_numpy("image").tolist() == expected


@pytest.mark.parametrize(
    ("inputs", "error"),
    [
        ([], "the input prompt is missing"),
        ("x", "inputs: expected a list"),
        ([3], "inputs: expected objects with a name, got 3"),
        ([PROMPT, PROMPT], "inputs: 'prompt' is there twice"),
        ([one("promt", "BYTES", ["a"])], "unknown input 'promt'; did you mean 'prompt'"),
        ([one("prompt", "TEXT", ["a"])], "prompt: unknown datatype 'TEXT'"),
        ([one("prompt", "BYTES", ["a"], extra=1)], "prompt: unknown field 'extra'"),
        ([one("prompt", "INT64", [1])], "prompt: the datatype INT64 is not taken: expected BYTES"),
        ([one("prompt", "BYTES", [1])], "prompt: data holds 1: expected values of the datatype BYTES"),
        ([one("prompt", "BYTES", ["a"], [2])], r"prompt: data has 1 values: expected 2, as shape \[2\]"),
        ([one("prompt", "BYTES", ["a", "b"], [1, 2])], r"prompt: shape \[1, 2\]: expected \[n\]"),
        ([one("prompt", "BYTES", [["a"], ["b", "c"]], [2, 1])], "prompt: data is not nested as its shape"),
        ([one("prompt", "BYTES", [], [0])], r"prompt: shape \[0\]: expected \[n\]"),
        ([one("prompt", "BYTES", "a", [1])], "prompt: data='a': expected a list"),
        ([one("prompt", "BYTES", ["a"], [-1])], "prompt: shape=.-1.: expected a list of at most 8 integers >= 0"),
        ([one("prompt", "BYTES", ["a"], [10**6, 10**6])], "expected at most 100,000"),
        ([{"name": "prompt", "shape": [1], "datatype": "BYTES"}], "prompt: expected either data, or the parameter"),
        (
            [one("prompt", "BYTES", ["a"], parameters={"shared_memory_region": "x"})],
            "prompt: unknown parameter 'shared_memory_region'",
        ),
        ([PROMPT, one("seed", "FP32", [1.0])], "seed: the datatype FP32 is not taken: expected INT64"),
        ([PROMPT, one("seed", "UINT8", [300])], "seed: data holds 300: expected values of the datatype UINT8"),
        ([PROMPT, one("seed", "INT64", [True])], "seed: data holds True"),
        ([PROMPT, one("vae_tiling", "BOOL", [1])], "vae_tiling: data holds 1"),
        ([PROMPT, one("steps", "INT64", [2, 3])], r"steps: shape \[2\]: expected \[1\]"),
        ([PROMPT, one("steps", "INT64", [2]), one("num_inference_steps", "INT64", [3])], "are the same option"),
        ([PROMPT, one("guidance_scale", "FP32", [-1.0])], "guidance_scale=-1.0: expected a number from 0 to 1000"),
        ([PROMPT, one("target_size", "INT64", [1, 2, 3])], r"target_size: shape \[3\]: expected \[2\]"),
        ([PROMPT, one("scheduler", "BYTES", ["{"])], "is not JSON"),
        ([PROMPT, one("scheduler", "BYTES", ["{\ud800"])], "is not JSON"),
        ([one("prompt", "BYTES", ["\ud800"])], "prompt"),
        ([PROMPT, one("image", "BYTES", ["/etc/passwd"])], "image: expected base64"),
        ([PROMPT, one("negative_prompt", "BYTES", ["a", "b"])], "negative_prompt"),
        ([PROMPT, one("seed", "INT64", [1, 2])], "seed"),
    ],
)
def test_wrong_inputs(http: httpx.Client, inputs: Any, error: str) -> None:
    told = refused(http, json={"inputs": inputs})
    assert re.search(error, told), told


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"parameters": {"stepz": 3}}, "unknown parameter 'stepz'; did you mean 'steps'"),
        ({"parameters": {"model": "shapes"}}, "unknown parameter 'model'"),
        ({"parameters": {"sequence_id": 3}}, "unknown parameter 'sequence_id'"),
        ({"parameters": []}, "parameters=[]: expected an object"),
        ({"parameters": [3]}, "parameters=[3]: expected an object"),
        ({"parameters": {"timeout": -1}}, "timeout=-1: expected microseconds"),
        ({"parameters": {"timeout": 1, "deadline_ms": 2}}, "deadline_ms is given twice"),
        ({"parameters": {"binary_data_output": 1}}, "binary_data_output=1: expected true or false"),
        ({"outputs": [{"name": "images"}]}, "unknown output 'images'; did you mean 'image'"),
        ({"outputs": [{"name": "image", "parameters": {"classification": 2}}]}, "unknown parameter 'classification'"),
        ({"outputs": [{"name": "pixels"}], "parameters": {"output_format": "jpeg"}}, "loses some of pixels"),
        ({"id": 3}, "id=3: expected a text"),
        ({"id": "\ud800"}, "expected a text of at most 1000 characters of Unicode"),
        ({"input": []}, "unknown field 'input'"),
    ],
)
def test_wrong_fields(http: httpx.Client, fields: dict[str, Any], error: str) -> None:
    assert error in refused(http, json={"inputs": [PROMPT], **fields})


TEXT: dict[str, Any] = {"name": "prompt", "shape": [2], "datatype": "BYTES"}
TWO = packed(b"a", b"bc")


@pytest.mark.parametrize(
    ("inputs", "error"),
    [
        ([(TEXT, TWO[:-1])], "element 1 of BYTES says it has 2 bytes, but 1 are left"),
        ([(TEXT, TWO[:6])], "ends before element 1 of 2"),
        ([(TEXT, TWO + b"x")], "1 bytes of binary data are left after its 2 elements"),
        ([({**TEXT, "size": 5}, TWO)], "ends before element 1 of 2"),
        ([({**TEXT, "size": 50}, TWO)], "binary_data_size=50: expected an integer up to the 11 bytes"),
        ([({**TEXT, "size": -1}, TWO)], "binary_data_size=-1"),
        ([({**TEXT, "size": True}, TWO)], "binary_data_size=True"),
        ([({**TEXT, "shape": [1]}, struct.pack("<I", 2**32 - 1))], "says it has 4294967295 bytes, but 0 are left"),
        ([({**TEXT, "shape": [1]}, packed(b"\xff"))], "is not a text in UTF-8"),
        ([({**TEXT, "data": ["a"]}, TWO)], "expected either data, or the parameter binary_data_size"),
        (
            [(TEXT, TWO), ({"name": "seed", "shape": [1], "datatype": "INT64"}, bytes(4))],
            "4 bytes of binary data: expected 8 for INT64 of shape [1]",
        ),
        ([(TEXT, TWO), ({"name": "vae_tiling", "shape": [1], "datatype": "BOOL"}, b"\2")], "bytes that are 0 or 1"),
        (
            [(TEXT, TWO), ({"name": "eta", "shape": [1], "datatype": "FP32"}, np.float32("nan").tobytes())],
            "eta=nan: expected a number",
        ),
    ],
)
def test_wrong_binary_data(http: httpx.Client, inputs: list[tuple[dict[str, Any], bytes]], error: str) -> None:
    content, headers = binary_body(*((dict(entry), data) for entry, data in inputs))
    assert error in refused(http, content=content, headers=headers)


def test_wrong_lengths_of_the_json(http: httpx.Client) -> None:
    content, headers = binary_body((dict(TEXT), TWO))
    assert http.post(INFER, content=content, headers=headers).status_code == 200
    for length in (str(len(content) + 1), "-1", "1e3", "9" * 20, "²"):
        wrong = {HEADER: length.encode()}
        assert "expected an integer up to the body's" in refused(http, content=content, headers=wrong)
    size = len(content) - len(TWO)
    assert "the body is not JSON" in refused(http, content=content, headers={HEADER: str(size - 1)})
    assert "the body is not JSON" in refused(http, content=content, headers={HEADER: str(size + 1)})
    assert "not JSON" in refused(http, content=content)
    assert "3 bytes of binary data belong to no input" in refused(http, content=content + b"abc", headers=headers)


def test_damaged_requests_are_refused_or_drawn(http: httpx.Client) -> None:
    """Bytes of a request are changed, left out or put in, and so is its header: nothing makes the server fail."""
    steps = {"name": "steps", "shape": [1, 1], "datatype": "INT32"}
    content, headers = binary_body((dict(TEXT), TWO), (steps, struct.pack("<i", 2)), outputs=[{"name": "pixels"}])
    random, statuses = Random(3), Counter[int]()
    for _ in range(300):
        damaged, length = bytearray(content), int(headers[HEADER])
        for _ in range(random.randint(1, 3)):
            at = random.randrange(len(damaged))
            damaged[at : at + random.randint(0, 2)] = random.choice(
                [b"", b"9", b"-", b"[", b'"', b"\xff", b"0", b"null"]
            )
        length += random.choice([0, 0, 0, len(damaged) - len(content), -1, 1])
        answer = http.post(INFER, content=bytes(damaged), headers={HEADER: str(length)})
        statuses[answer.status_code] += 1
        assert answer.status_code in (200, 400), (answer.text[:300], bytes(damaged), length)
    assert statuses[400] > 200
    assert statuses[200]


def test_errors_have_the_protocols_form_wherever_they_come_from(http: httpx.Client, service: FakeService) -> None:
    body = {"inputs": [PROMPT]}
    assert "unknown model 'x'" in refused(http, 404, "/v2/models/x/infer", json=body)
    assert "no version '2'" in refused(http, 404, "/v2/models/shapes/versions/2/infer", json=body)
    assert "Not Found" in refused(http, 404, "/v2/nothing", json=body)
    assert "Not Allowed" in refused(http, 405, "/v2/models/shapes", json=body)
    assert "too large" in refused(http, 413, content=bytes(2 << 20))
    assert "coding 'gzip'" in refused(http, 415, content=b"", headers={"Content-Encoding": "gzip"})
    assert "may not call" in refused(http, 403, json=body, headers={"Origin": "https://example.org"})
    service.refusals = [RefusedError("busy", "too much work waits", 7)]
    answer = http.post(INFER, json=body)
    assert (answer.status_code, answer.headers["Retry-After"]) == (429, "7")
    assert answer.json() == {"error": "too much work waits"}
    failing = {"inputs": [one("prompt", "BYTES", ["fail non_finite"])]}
    assert "as the test asked for" in refused(http, 500, json=failing)
    assert http.get("/v2x").json()["error"]["message"] == "Not Found"  # of another API


def test_health(http: httpx.Client, service: FakeService) -> None:
    assert http.get("/v2/health/live").json() == {"live": True}
    assert http.get("/v2/models/sd/ready").json() == {"name": "shapes", "ready": True}
    service.is_ready = service.is_live = False
    for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/shapes/ready"):
        answer = http.get(path)
        assert answer.status_code == 503
        assert answer.headers["Retry-After"] == "5"
    assert http.get("/v2/models/x/ready").status_code == 404


def test_a_client_that_leaves_cancels_its_drawing(http: httpx.Client, service: FakeService) -> None:
    service.delay = 0.1
    with pytest.raises(httpx.ReadTimeout):
        http.post(INFER, json={"inputs": [PROMPT], "parameters": {"steps": 100}}, timeout=0.5)
    ends = time.monotonic() + 10
    while not (service.tickets and service.tickets[0].cancelled):
        assert time.monotonic() < ends
        time.sleep(0.01)


def test_a_server_without_keys_manages_no_models(http: httpx.Client, repository: FakeRepository) -> None:
    for path in ("index", "models/shapes/load", "models/shapes/unload"):
        assert "this server has no keys" in refused(http, 403, f"/v2/repository/{path}", json={})
    assert repository.state("shapes") == "loaded"
