"""A real Triton server with the repository that `latentrt triton` writes, called by Triton's clients."""

import base64
import io
import json
import queue
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc as grpc
import tritonclient.http as http
from PIL import Image
from support.exports import ROOT
from support.kserve import tensor, wanted
from support.tritonserver import TritonServer, environment, triton_server
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from latentrt.runtime import Pipeline
from latentrt.runtime.cli import main
from latentrt.runtime.pipeline import embedded_bundle

pytestmark = pytest.mark.slow
TEXTS = ["a large yellow square", "a blue heart"]
OPTIONS: dict[str, Any] = {"num_inference_steps": 5, "scheduler": "dpm++_2m", "seed": 31, "guidance_scale": 3.1}
SIZE = {"width": 64, "height": 64}
# Takes minutes, and leaves no room for another request that fills the queue.
ENDLESS = {"num_inference_steps": 1000, "num_images_per_prompt": 100}
FILLS = {"num_inference_steps": 1, "num_images_per_prompt": 100, "scheduler": "euler"}
FLAGS = [
    *("--lazy", "--backend=onnxruntime", "--device=cpu", "--sizes=64x64", "--batch=2"),
    *("--max-wait=1h", "--max-steps=1000", "--max-images=100", "--max-queue=100"),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Iterator[TritonServer]:
    """The model "shapes", which tells progress, and "once", which does not and has its bundle beside it."""
    folder = tmp_path_factory.mktemp("triton")
    repository = str(folder / "models")
    assert main(["triton", str(embedded_bundle()), repository, *FLAGS]) == 0
    assert main(["triton", f"once={embedded_bundle()}", repository, *FLAGS, "--no-progress", "--copy"]) == 0
    assert pytestconfig.cache is not None
    made = environment(pytestconfig.cache.mkdir("tritonserver"))
    with triton_server(made, folder / "models", folder / "log") as server:
        yield server


@pytest.fixture(scope="module")
def pipe() -> Iterator[Pipeline]:
    with Pipeline.load(backend="onnxruntime", device="cpu") as pipe:
        yield pipe


class Stream:
    """A request over a gRPC stream."""

    def __init__(
        self, server: TritonServer, *outputs: str, model: str = "shapes", parameters: Any = None, **inputs: Any
    ) -> None:
        self._client = grpc.InferenceServerClient(server.grpc)
        self._answers: queue.Queue[Any] = queue.Queue()
        self._client.start_stream(lambda result, error: self._answers.put((result, error)))
        names = [grpc.InferRequestedOutput(name) for name in outputs] or None
        self._client.async_stream_infer(model, tensors(**inputs), outputs=names, parameters=parameters)

    def next(self) -> Any:
        """The next response; raises the error that was sent instead, and leaves then."""
        result, error = self._answers.get(timeout=120)
        if error is not None:
            self.leave(cancel=False)
            raise error
        return result

    def all(self) -> list[Any]:
        """Up to the final response."""
        results = [self.next()]
        while not results[-1].get_response().parameters["triton_final_response"].bool_param:
            results.append(self.next())
        self.leave(cancel=False)
        return results

    def leave(self, *, cancel: bool = True) -> None:
        """Close the stream. `cancel`: what is not finished."""
        self._client.stop_stream(cancel_requests=cancel)
        self._client.close()


def tensors(**inputs: Any) -> list[grpc.InferInput]:
    result = []
    for name, value in inputs.items():
        values = np.asarray(value if isinstance(value, list) else [value])
        array = values.astype(object) if values.dtype.kind in "US" else values
        one = grpc.InferInput(name, [*array.shape], np_to_triton_dtype(array.dtype))
        result.append(one.set_data_from_numpy(array))
    return result


def drawn(pipe: Pipeline, prompt: Any, **options: Any) -> Any:
    return pipe(prompt, **{**SIZE, **OPTIONS, **options}, output_type="np").images


def names(result: Any) -> list[str]:
    return sorted(output.name for output in result.get_response().outputs)


def test_a_stream_tells_progress_and_brings_the_pictures(server: TritonServer, pipe: Pipeline) -> None:
    *progress, last = Stream(server, prompt=TEXTS, negative_prompt=["red", "green"], **OPTIONS).all()
    expected = drawn(pipe, TEXTS, negative_prompt=["red", "green"])
    assert names(last) == ["image", "pixels", "seed"]
    assert np.array_equal(last.as_numpy("pixels"), expected)
    assert last.as_numpy("seed").tolist() == [31, 32]
    for text, pixels in zip(last.as_numpy("image"), expected, strict=True):
        with Image.open(io.BytesIO(base64.b64decode(text))) as picture:
            assert np.array_equal(np.asarray(picture), pixels)
    told = [tuple(one.as_numpy("progress").tolist()) for one in progress]
    for picture in (0, 1):
        steps = [step for index, step, _ in told if index == picture]
        assert steps == sorted({*steps})
        assert steps[-1] == 5
    assert {of for _, _, of in told} == {5}


def test_previews_and_parameters(server: TritonServer) -> None:
    options = {**OPTIONS, "num_inference_steps": 30}
    parameters = {"previews": 3, "output_format": "jpeg", "preview_method": "rgb"}
    *previews, last = Stream(server, "preview", "image", parameters=parameters, prompt=TEXTS[0], **options).all()
    assert previews
    assert all(names(one) == ["preview"] for one in previews)
    assert base64.b64decode(last.as_numpy("image")[0]).startswith(b"\xff\xd8")


def test_a_picture_and_a_mask_to_begin_from(server: TritonServer, pipe: Pipeline) -> None:
    image = Image.fromarray(np.random.default_rng(5).integers(0, 256, (64, 64, 3), np.uint8))
    image.save(file := io.BytesIO(), "PNG")
    given = grpc.InferInput("image", [1], "BYTES")
    given.set_data_from_numpy(np.array([file.getvalue()], object))
    client = grpc.InferenceServerClient(server.grpc)
    result = client.infer("once", [given, *tensors(prompt=TEXTS[0], strength=0.6, **OPTIONS)])
    assert np.array_equal(result.as_numpy("pixels"), drawn(pipe, TEXTS[0], image=image, strength=0.6))


def test_one_response_over_http(server: TritonServer, pipe: Pipeline) -> None:
    client = http.InferenceServerClient(server.http, network_timeout=100)
    inputs = [tensor("prompt", TEXTS), *(tensor(name, [value]) for name, value in OPTIONS.items())]
    result = client.infer("once", inputs, outputs=wanted("pixels", "seed"), request_id="seven")
    assert result.get_response()["id"] == "seven"
    assert {one["name"] for one in result.get_response()["outputs"]} == {"pixels", "seed"}
    assert np.array_equal(result.as_numpy("pixels"), drawn(pipe, TEXTS))
    with pytest.raises(InferenceServerException, match="doesn't support models with decoupled") as error:
        client.infer("shapes", inputs)
    assert error.value.status() == "501"


def test_progress_over_http_as_server_sent_events(server: TritonServer, pipe: Pipeline) -> None:
    body = {"prompt": TEXTS[1], **OPTIONS}
    with httpx.stream("POST", f"http://{server.http}/v2/models/shapes/generate_stream", json=body) as answer:
        events = [json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: ")]
    assert [event["progress"] for event in events[:-1]][-1] == [0, 5, 5]
    with Image.open(io.BytesIO(base64.b64decode(events[-1]["image"]))) as picture:
        assert np.array_equal(np.asarray(picture)[None], drawn(pipe, TEXTS[1]))


def from_docs(language: str, start: str, server: TritonServer) -> str:
    """Code of docs/triton.md, for this server."""
    blocks = re.findall(rf"```{language}\n(.*?)```", (ROOT / "docs" / "triton.md").read_text(), re.DOTALL)
    (code,) = [block for block in blocks if block.startswith(start)]
    return code.replace("127.0.0.1:8001", server.grpc).replace("127.0.0.1:8000", server.http).replace("sd15", "shapes")


def test_the_client_of_the_docs(server: TritonServer, tmp_path: Path, pipe: Pipeline) -> None:
    (tmp_path / "client.py").write_text(from_docs("python", "import base64", server))
    command = [sys.executable, "client.py"]
    told = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=100).stdout
    assert re.search(r"^picture 0: 20 of 20$", told, re.MULTILINE)
    assert re.search(r"^\d{3,} characters of a preview$", told, re.MULTILINE)
    with Image.open(tmp_path / "star.png") as picture:
        assert np.array_equal(np.asarray(picture), pipe("a large red star", **SIZE, seed=7, output_type="np").images[0])


def test_curl_as_in_the_docs(server: TritonServer) -> None:
    command = ["bash", "-c", from_docs("sh", "curl", server)]
    told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=100).stdout
    events = [json.loads(line.removeprefix("data: ")) for line in told.splitlines() if line]
    assert "preview" in {name for event in events for name in event}
    assert "image" in events[-1]


def test_metadata_is_that_of_the_config(server: TritonServer) -> None:
    told = http.InferenceServerClient(server.http).get_model_metadata("once", "1")
    inputs = {one["name"]: (one["datatype"], one["shape"]) for one in told["inputs"]}
    assert inputs["prompt"] == ("BYTES", [-1])
    assert inputs["target_size"] == ("INT64", [2])
    assert [one["name"] for one in told["outputs"]] == ["image", "pixels", "seed"]


def test_two_clients_are_drawn_together(server: TritonServer, pipe: Pipeline) -> None:
    """The device draws two pictures at a time: progress of one comes between that of the other."""
    options = {**OPTIONS, "num_inference_steps": 100}
    first = Stream(server, prompt=TEXTS[0], **options)
    first.next()
    second = Stream(server, prompt=TEXTS[1], **options)
    second.next()
    later = first.all()
    assert any(one.as_numpy("progress") is not None for one in later)
    for text, last in zip(TEXTS, (later[-1], second.all()[-1]), strict=True):
        assert np.array_equal(last.as_numpy("pixels"), drawn(pipe, text, num_inference_steps=100))


def test_a_cancelled_request_leaves_the_queue(server: TritonServer) -> None:
    client, calls = grpc.InferenceServerClient(server.grpc), []

    def begin() -> bool:
        """Whether the call has its place: it may have come after the other request, and been refused itself."""
        if not calls or calls[-1][1].is_set():
            ended = threading.Event()
            call = client.async_infer("once", tensors(prompt=TEXTS[0], **ENDLESS), lambda **_: ended.set())
            calls.append((call, ended))
        return "[server_busy, 429; again after" in refusal(server, "once")

    until(begin)
    call, ended = calls[-1]
    assert not ended.is_set()
    call.cancel()
    until(lambda: not refusal(server, "once"))
    assert ended.wait(120)


def test_a_closed_stream_leaves_the_queue(server: TritonServer) -> None:
    stream = Stream(server, "progress", prompt=TEXTS[0], **ENDLESS)
    stream.next()
    assert "[server_busy, 429; again after" in refusal(server, "shapes")
    stream.leave()
    until(lambda: not refusal(server, "shapes"))


def refusal(server: TritonServer, model: str) -> str:
    """Why a request that fills the queue is refused; "" where it is drawn."""
    try:
        answer = Stream(server, "seed", model=model, prompt=TEXTS[1], **FILLS).all()[-1]
    except InferenceServerException as error:
        return str(error)
    assert len(answer.as_numpy("seed")) == 100
    return ""


def until(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    """Wait for less time than what is endless here would take."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end


@pytest.mark.parametrize(
    ("inputs", "parameters", "message"),
    [
        ({"width": 128}, {}, "size 128x64: .* draws 64x64; the nearest is 64x64 \\[invalid_request, 400\\]"),
        ({"scheduler": "eulr"}, {}, "did you mean 'euler'.*invalid_request"),
        ({}, {"sead": 1}, "unknown parameter 'sead'; did you mean 'seed'.*unknown_parameter"),
        ({"seed": [[1]]}, {}, "unexpected shape for input 'seed'"),
        ({"steps": 3}, {}, "unexpected inference input 'steps'"),
        ({"width": 64.0}, {}, "inference input 'width' data-type is 'FP64'"),
    ],
)
def test_wrong_input_is_told(server: TritonServer, inputs: Any, parameters: Any, message: str) -> None:
    with pytest.raises(InferenceServerException, match=message):
        Stream(server, prompt=TEXTS[0], parameters=parameters, **inputs).next()
    client, given = grpc.InferenceServerClient(server.grpc), tensors(prompt=TEXTS[0], **inputs)
    with pytest.raises(InferenceServerException, match=message) as error:
        client.infer("once", given, parameters=parameters)
    assert error.value.status() == "StatusCode.INVALID_ARGUMENT"


def test_a_device_that_dies_is_started_anew(server: TritonServer, pipe: Pipeline) -> None:
    stream = Stream(server, prompt=TEXTS[0], **ENDLESS)
    stream.next()
    (device,) = server.devices("shapes")
    device.kill()
    with pytest.raises(InferenceServerException, match=r"was ended by signal 9 \[device_restarted, 503; again"):
        stream.all()
    until(lambda: server.devices("shapes") not in ([], [device]))

    def last() -> Any:
        try:
            return Stream(server, prompt=TEXTS[0], **OPTIONS).all()[-1]
        except InferenceServerException as error:
            return str(error)

    until(lambda: "[server_starting, 503; again after" not in str(last()))
    assert np.array_equal(last().as_numpy("pixels"), drawn(pipe, TEXTS[0]))
