"""A request for inference as a job, and its pictures as tensors. Knows no routes."""

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentrt.runtime.errors import InputError, shown, unknown
from latentrt.serve.http.bodies import CallReader, call_properties
from latentrt.serve.http.errors import ApiError
from latentrt.serve.http.following import Drawn
from latentrt.serve.http.keys import Key
from latentrt.serve.messages import Job, Picture, Previews
from latentrt.serve.messages import Output as FileFormat
from latentrt.serve.served_model import ServedModel

from .envelope import Asked, Given, Values
from .signature import IMAGE, OUTPUTS, PIXELS, PROMPT, SEED, USUAL, input_named, inputs
from .tensors import Tensor

JSON_VALUES = 1 << 20  # of pixels in one answer: their JSON takes many times their memory, and time of all threads
TIMEOUT = "timeout"  # a parameter of Triton's clients, in microseconds


@cache
def parameter_schemas() -> dict[str, Any]:
    """JSON schemas of what the parameters of a request may hold."""
    timeout = {"type": "integer", "minimum": 1, "description": "microseconds; deadline_ms in another unit"}
    binary = {"type": "boolean", "description": "whether outputs are binary that do not say otherwise"}
    own = {name: schema for name, schema in call_properties().items() if name != "model"}
    return {**own, TIMEOUT: timeout, "binary_data_output": binary}


@dataclass(frozen=True, slots=True)
class Inference:
    """A checked request. `outputs`: by name, and whether their data is binary."""

    id: str | None
    job: Job
    outputs: Mapping[str, bool]


def checked(
    asked: Asked, model: ServedModel, reader: CallReader, key: Key, *, previews: Previews | None = None
) -> Inference:
    """The job of a request; raises `InputError` or `ApiError`."""
    names = asked.outputs or dict.fromkeys(USUAL)
    for name in names:
        if name not in OUTPUTS:
            raise InputError(unknown("output", name, OUTPUTS))
    outputs = {name: asked.binary if binary is None else binary for name, binary in names.items()}
    call = _call(asked)
    if PIXELS in outputs and call.get("output_format", "png") != "png":
        raise InputError(f"output_format={shown(call['output_format'])} loses some of {PIXELS}: leave one of them out")
    job = reader.job({**call, "model": model.name}, key, previews=previews)
    values = 3 * job.images * job.request.width * job.request.height
    if not outputs.get(PIXELS, True) and values > JSON_VALUES:
        raise InputError(
            f"{PIXELS} has {values:,} values: expected at most {JSON_VALUES:,} in JSON; ask for it with binary_data"
        )
    if PIXELS in outputs and IMAGE not in outputs:  # as a file they would be encoded only to be decoded
        job = replace(job, output=FileFormat("raw"))
    return Inference(asked.id, job, outputs)


def _call(asked: Asked) -> dict[str, Any]:
    """The fields of a call, from inputs and parameters."""
    call: dict[str, Any] = {}
    for tensor in asked.inputs:
        _add(call, tensor)
    if PROMPT not in call:
        raise InputError(f"the input {PROMPT} is missing: expected BYTES of shape [n], a picture for each text")
    for name, value in asked.parameters.items():
        if name == TIMEOUT:
            name, value = "deadline_ms", _milliseconds(value)
        elif name not in parameter_schemas():
            raise ApiError(400, unknown("parameter", name, parameter_schemas()), "unknown_parameter", param=name[:80])
        if name in call:
            raise InputError(f"{name} is given twice, as an input or parameter: leave one of them out")
        call[name] = value
    return call


def _add(call: dict[str, Any], tensor: Tensor) -> None:
    """Add what an input says; those of single ControlNets become an object by their names."""
    known, net = input_named(tensor.name)
    if known is None:
        raise ApiError(400, unknown("input", tensor.name, inputs()), "unknown_parameter", param=tensor.name[:80])
    option = tensor.name.partition(".")[0]
    if known.by_net and option in call and isinstance(call[option], dict) != bool(net):
        raise InputError(f"{option} is given for all ControlNets and for single ones: leave one of them out")
    if net:
        call.setdefault(option, {})[net] = known.value(tensor)
    else:
        call[option] = known.value(tensor)


def _milliseconds(microseconds: Any) -> int:
    if isinstance(microseconds, bool) or not isinstance(microseconds, int) or microseconds < 1:
        raise InputError(f"{TIMEOUT}={shown(microseconds)}: expected microseconds, an integer >= 1")
    return -(-microseconds // 1000)


def tensors(inference: Inference, result: Drawn) -> list[Given]:
    """The outputs that were asked for, with a row for each picture."""
    made: Mapping[str, Callable[[], Values]] = {
        IMAGE: lambda: [base64.b64encode(picture.data) for picture in result.pictures],
        PIXELS: lambda: _pixels(result.pictures),
        SEED: lambda: np.array([_signed(picture.seed) for picture in result.pictures], "<i8"),
    }
    return [Given(name, OUTPUTS[name].datatype, made[name](), binary) for name, binary in inference.outputs.items()]


def _signed(seed: int) -> int:
    """A seed beyond INT64 as the negative one of the same bits, which draws the same."""
    return (seed + 2**63) % 2**64 - 2**63


def _pixels(pictures: Sequence[Picture]) -> NDArray[np.uint8]:
    """(pictures, H, W, 3)."""
    from PIL import Image

    rows = []
    for picture in pictures:
        if picture.format == "raw":
            rows.append(np.frombuffer(picture.data, np.uint8).reshape(picture.height, picture.width, 3))
        else:
            with Image.open(io.BytesIO(picture.data)) as image:
                rows.append(np.asarray(image.convert("RGB")))
    return np.stack(rows)
