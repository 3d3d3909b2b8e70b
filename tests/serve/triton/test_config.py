"""config.pbtxt, read by protobuf's own parser with Triton's schema."""

from typing import Any

import pytest
from fastapi.testclient import TestClient
from google.protobuf import text_format
from hypothesis import given
from hypothesis import strategies as st
from support.fake_service import FakeRepository, FakeService, kserve_face
from tritonclient.grpc import model_config_pb2

from latentrt.runtime.errors import InputError
from latentrt.serve.http.app import make_app
from latentrt.serve.http.config import HttpConfig
from latentrt.serve.triton.config import model_config

CPU, GPU, MODEL = (model_config_pb2.ModelInstanceGroup.Kind.Value(f"KIND_{kind}") for kind in ("CPU", "GPU", "MODEL"))


def parsed(*devices: str, progress: bool = True, **parameters: str) -> Any:
    text = model_config(devices, parameters, progress=progress)
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def tensors(entries: Any) -> dict[str, tuple[str, list[int]]]:
    """Datatypes and shapes by name, as the protocol writes them."""
    names = {one.name: model_config_pb2.DataType.Name(one.data_type).removeprefix("TYPE_") for one in entries}
    return {one.name: (names[one.name].replace("STRING", "BYTES"), list(one.dims)) for one in entries}


def metadata() -> Any:
    """What `latentrt serve` tells of the model."""
    service = FakeService()
    app = make_app(service, HttpConfig(), faces=[kserve_face(service, FakeRepository(service))])
    with TestClient(app) as client:
        return client.get("/v2/models/shapes").json()


def told(entries: Any) -> dict[str, tuple[str, list[int]]]:
    return {one["name"]: (one["datatype"], one["shape"]) for one in entries}


def test_inputs_and_outputs_are_those_of_the_server() -> None:
    served, config = metadata(), parsed(progress=False)
    assert tensors(config.input) == told(served["inputs"])
    assert tensors(config.output) == told(served["outputs"])
    assert [one.name for one in config.input if not one.optional] == ["prompt"]
    assert tensors(config.input)["target_size"] == ("INT64", [2])
    assert tensors(config.output)["pixels"] == ("UINT8", [-1, -1, -1, 3])


def test_a_model_that_tells_progress_is_decoupled_and_has_more_outputs() -> None:
    config = parsed()
    assert config.model_transaction_policy.decoupled
    once = parsed(progress=False)
    assert not once.model_transaction_policy.decoupled
    assert tensors(config.output) == {
        **tensors(once.output),
        "progress": ("INT64", [3]),
        "preview": ("BYTES", [1]),
    }


def test_requests_are_not_joined_by_triton() -> None:
    config = parsed()
    assert (config.backend, config.max_batch_size) == ("python", 0)
    assert not config.HasField("dynamic_batching")
    assert not config.HasField("sequence_batching")


@pytest.mark.parametrize(
    ("devices", "groups"),
    [
        ((), [(MODEL, 1, [])]),
        (("cpu",), [(CPU, 1, [])]),
        (("cuda",), [(GPU, 1, [0])]),
        (("cuda:0", "cuda:3"), [(GPU, 1, [0]), (GPU, 1, [3])]),
        (("cuda:1", "cpu", "cuda:1"), [(GPU, 2, [1]), (CPU, 1, [])]),
        (("cuda", "cuda:0"), [(GPU, 2, [0])]),
    ],
)
def test_devices_are_instances(devices: tuple[str, ...], groups: list[Any]) -> None:
    assert [(one.kind, one.count, list(one.gpus)) for one in parsed(*devices).instance_group] == groups


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_comes_back(text: str) -> None:
    assert parsed(filter=text).parameters["filter"].string_value == text


def test_a_path_that_is_not_utf8_is_refused() -> None:
    with pytest.raises(InputError, match=r"'/models/\\udcff' is no text in UTF-8.*rename it"):
        parsed(bundle="/models/\udcff")
