"""The model as Triton's Python backend calls it, with the embedded model on a device in this process."""

import base64
import io
import json
import re
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from google.protobuf import json_format, text_format
from PIL import Image
from support.triton_modules import TritonError, TritonModelException, module, request
from tritonclient.grpc import model_config_pb2

from latentrt.runtime import Pipeline
from latentrt.runtime.errors import InputError
from latentrt.runtime.pipeline import embedded_bundle
from latentrt.serve.http.kserve.envelope import Given
from latentrt.serve.messages import Called
from latentrt.serve.triton.config import model_config
from latentrt.serve.triton.errors import triton_error
from latentrt.serve.worker.inline import InlineWorker
from latentrt.serve.worker.wire import ChildConfig
from latentrt.serve.worker.worker import Watchers, Worker

TEXTS = ["a small green star", "a yellow circle"]
OPTIONS: dict[str, Any] = {"num_inference_steps": 4, "scheduler": "euler_a", "seed": 21, "guidance_scale": 2.7}
SIZE = {"width": 96, "height": 64}
ALL = ("image", "pixels", "seed", "progress", "preview")
PARAMETERS = {
    "bundle": str(embedded_bundle()),
    "lazy": "true",
    "backend": "onnxruntime",
    "sizes": "96x64",
    "batch": "2",
    "drain_seconds": "30",
}
calls: list[Called] = []


@pytest.fixture(scope="module")
def backend() -> Iterator[ModuleType]:
    """`latentrt.serve.triton.backend`, with Triton's module as the tests have it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "triton_python_backend_utils", module())
        from latentrt.serve.triton import backend

        patch.setattr(backend, "configure", lambda *_, **__: None)  # the log is pytest's
        patch.setattr(backend, "Instance", partial(backend.Instance, worker=_inline))
        yield backend
        del sys.modules[backend.__name__]


def _inline(config: ChildConfig) -> Worker:
    return InlineWorker(config.models, config.options, watchers=Watchers(called=calls.append))


def arguments(parameters: dict[str, str], progress: bool = True, kind: str = "CPU") -> dict[str, str]:
    """What Triton tells a model."""
    config = text_format.Parse(
        model_config([kind.lower()], parameters, progress=progress), model_config_pb2.ModelConfig()
    )
    facts = {"model_name": "shapes", "model_version": "1", "model_repository": "/models/shapes"}
    told = json_format.MessageToDict(config, preserving_proto_field_name=True)
    return {**facts, "model_config": json.dumps(told), "model_instance_kind": kind, "model_instance_device_id": "0"}


@pytest.fixture(scope="module")
def model(backend: ModuleType) -> Iterator[Any]:
    model = backend.TritonPythonModel()
    model.initialize(arguments(PARAMETERS))
    yield model
    model.finalize()


@pytest.fixture(scope="module")
def pipe() -> Iterator[Pipeline]:
    with Pipeline.load(backend="onnxruntime", device="cpu") as pipe:
        yield pipe


def test_pictures_are_those_of_the_pipeline(model: Any, pipe: Pipeline) -> None:
    asked = request(*ALL, prompt=TEXTS, negative_prompt=["red", "a square"], **OPTIONS)
    assert model.execute([asked]) is None
    *progress, last = asked.wait().responses
    expected = pipe(TEXTS, negative_prompt=["red", "a square"], **SIZE, **OPTIONS, output_type="np").images
    assert last.keys() == {"image", "pixels", "seed"}
    assert last["pixels"].dtype == np.uint8
    assert np.array_equal(last["pixels"], expected)
    assert (last["seed"].dtype, last["seed"].tolist()) == (np.int64, [21, 22])
    for text, pixels in zip(last["image"], expected, strict=True):
        with Image.open(io.BytesIO(base64.b64decode(text))) as picture:
            assert np.array_equal(np.asarray(picture), pixels)
    told = [tuple(one["progress"].tolist()) for one in progress]
    assert [call for picture, call, _ in told if picture == 1][-1] == 4
    assert {of for _, _, of in told} == {4}
    assert all(one.keys() == {"progress"} for one in progress)  # previews were not asked for


def test_two_requests_share_unet_calls(model: Any, pipe: Pipeline) -> None:
    calls.clear()
    options = {**OPTIONS, "num_inference_steps": 24}
    asked = [request("pixels", prompt=text, **options) for text in TEXTS]
    model.execute(asked)
    for text, one in zip(TEXTS, asked, strict=True):
        expected = pipe(text, **SIZE, **options, output_type="np").images
        (response,) = one.wait().responses
        assert np.array_equal(response["pixels"], expected)
    assert sum(one.count for one in calls) == 48
    assert Counter(one.count for one in calls)[2] >= 12


def test_previews_where_they_are_asked_for(model: Any) -> None:
    asked = request("preview", "image", parameters={"previews": 2}, prompt="a star", **OPTIONS)
    model.execute([asked])
    *previews, last = asked.wait().responses
    assert last.keys() == {"image"}
    assert 1 <= len(previews) <= 2  # a newer one replaces one that was not sent yet
    for response in previews:
        assert response.keys() == {"preview"}
        with Image.open(io.BytesIO(base64.b64decode(response["preview"][0]))) as picture:
            assert picture.width * 64 == picture.height * 96


def test_a_cancelled_request_leaves_its_slots(model: Any) -> None:
    """All images of the long request would be 1500 calls."""
    calls.clear()
    long = request("progress", "image", prompt="a star", num_inference_steps=150, num_images_per_prompt=10)
    model.execute([long])
    while not long.responses:
        assert not long.ended.wait(0.01)
    long.cancelled = True
    long.wait()
    assert long.error is not None
    assert (long.error.code, long.error.text) == (
        TritonError.CANCELLED,
        "the client has closed the connection [cancelled, 499]",
    )
    while True:
        after = request("image", prompt="a circle", **OPTIONS)
        model.execute([after])
        if after.wait().error is None:
            break
        assert "too_many_jobs, 429; again after" in after.error.text  # until the next call
    assert sum(one.count for one in calls) < 1000


@pytest.mark.parametrize(
    ("facts", "code", "message"),
    [
        ({"width": 200}, "INVALID_ARG", r"size 200x64: shapes draws 96x64; .* \[invalid_request, 400\]$"),
        ({"prompt": [["a"], ["b"]], "seed": [1, 2, 3]}, "INVALID_ARG", r"\[invalid_request, 400\]$"),
        ({"seed": [[1, 2]]}, "INVALID_ARG", r"^seed: shape \[1, 2\]: expected \[n\]"),
        ({"sigmas": np.zeros(100_001)}, "INVALID_ARG", r"^sigmas: .*100,001 values: expected at most 100,000"),
        ({"prompt": b"\xff"}, "INVALID_ARG", "^prompt: an element of BYTES is not a text in UTF-8"),
        ({"parameters": {"sead": 1}}, "INVALID_ARG", r"unknown parameter 'sead'; did you mean 'seed'.*unknown_param"),
        ({"parameters": {"seed": 1}, "seed": 1}, "INVALID_ARG", "^seed is given twice"),
        ({"parameters": {"previews": -1}}, "INVALID_ARG", "^previews=-1: expected an integer from 0 to"),
        ({"parameters": {"loras": '{"ink": 1}'}}, "INVALID_ARG", "^unknown LoRA 'ink': this server has none"),
        ({"parameters": {"loras": "ink"}}, "INVALID_ARG", "^the body is not JSON"),
        ({"timeout": 1, "num_inference_steps": 150}, "UNAVAILABLE", r"\[deadline_exceeded, 504\]$"),
    ],
)
def test_wrong_requests_are_told_why(model: Any, facts: dict[str, Any], code: str, message: str) -> None:
    asked = request("image", **{"prompt": "a star", **facts})
    model.execute([asked])
    error = asked.wait().error
    assert error is not None
    assert error.code == getattr(TritonError, code)
    assert re.search(message, error.text), error.text
    assert not asked.responses


def test_parameters_of_triton_are_not_ours(model: Any) -> None:
    asked = request(
        "seed", prompt="a star", seed=3, parameters={"triton_enable_empty_final_response": True, "steps": 2}
    )
    model.execute([asked])
    assert [one["seed"].tolist() for one in asked.wait().responses] == [[3]]


def test_a_client_that_names_no_outputs_may_want_a_jpeg(model: Any) -> None:
    asked = request(*ALL, prompt="a star", **OPTIONS, parameters={"output_format": "jpeg"})
    model.execute([asked])
    last = asked.wait().responses[-1]
    assert last.keys() == {"image", "seed"}
    assert base64.b64decode(last["image"][0]).startswith(b"\xff\xd8")
    named = request("pixels", "image", prompt="a star", **OPTIONS, parameters={"output_format": "jpeg"})
    model.execute([named])
    error = named.wait().error
    assert error is not None
    assert "loses some of pixels" in error.text


def test_one_response_where_there_is_no_progress(backend: ModuleType, pipe: Pipeline) -> None:
    model = backend.TritonPythonModel()
    model.initialize(arguments(PARAMETERS, progress=False))
    asked = request("image", "pixels", "seed", prompt=TEXTS[0], **OPTIONS)
    more = request("image", prompt="a star", parameters={"previews": 1})
    model.execute([asked, more])
    model.finalize()  # what was accepted is finished
    assert asked.ended.is_set()
    (response,) = asked.responses
    assert np.array_equal(response["pixels"], pipe(TEXTS[0], **SIZE, **OPTIONS, output_type="np").images)
    assert more.error is not None
    assert more.error.text.startswith("unknown parameter 'previews'")


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"bundle": "bundle"}, "/models/shapes/1/bundle is not a folder"),
        ({"bundle": "b", "max_wiat": "1"}, "config.pbtxt: unknown parameter 'max_wiat'"),
        ({**PARAMETERS, "backend": "tensorrt"}, "tensorrt"),
    ],
)
def test_a_model_that_cannot_be_loaded_says_why(backend: ModuleType, parameters: dict[str, str], message: str) -> None:
    threads = {*threading.enumerate()}
    with pytest.raises(TritonModelException, match=message):
        backend.TritonPythonModel().initialize(arguments(parameters))
    assert not [one for one in threading.enumerate() if one not in threads and one.name == "answers"]


def test_a_request_has_one_end(backend: ModuleType) -> None:
    """Also where it is cancelled just when its last response is sent; Triton would refuse a second one."""
    asked = request("seed", prompt="a star")
    sender = backend._Sender(asked)
    seeds = Given("seed", "INT64", np.array([7]), True)
    sender.send([seeds], final=True)
    sender.fail(triton_error(InputError("too late")))
    sender.send([seeds], final=False)
    assert asked.error is None
    assert [one["seed"].tolist() for one in asked.responses] == [[7]]


@pytest.mark.parametrize(("kind", "device"), [("CPU", "cpu"), ("GPU", "cuda:3"), ("MODEL", None)])
def test_devices_are_those_of_the_instance(backend: ModuleType, kind: str, device: str | None) -> None:
    assert backend._device({"model_instance_kind": kind, "model_instance_device_id": "3"}) == device
