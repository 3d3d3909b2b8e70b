"""The text of a model's `config.pbtxt`, in protobuf's text format. Knows no files.

https://github.com/triton-inference-server/common/blob/main/protobuf/model_config.proto
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from latentrt.runtime.errors import InputError
from latentrt.serve.http.kserve.signature import PROMPT, Input, Output, inputs
from latentrt.serve.http.kserve.tensors import BYTES

from .outputs import outputs_of

HEAD = """\
# Written by `latentrt triton`. Every parameter is a setting of `latentrt serve`, by its key; `bundle` is the model.
backend: "python"
# Requests are not joined before they come to the model, which joins their pictures at every UNet call.
max_batch_size: 0
"""


def model_config(devices: Sequence[str], parameters: Mapping[str, str], *, progress: bool) -> str:
    """The configuration of a model.

    Args:
        devices: "cpu", "cuda" or "cuda:1", an instance of the model for each; () leaves the choice to the model.
        parameters: what the model reads when it is loaded.
        progress: whether a request has several responses (Triton calls such a model decoupled).

    Raises: InputError: a parameter is no text in UTF-8.
    """
    blocks = [
        HEAD.rstrip(),
        f"model_transaction_policy {{ decoupled: {str(progress).lower()} }}",
        _listed("instance_group", _groups(devices)),
        _listed("input", map(_input, inputs().values())),
        _listed("output", map(_tensor, outputs_of(progress=progress).values())),
        *(
            f"parameters {{ key: {_text(key)} value {{ string_value: {_text(parameters[key])} }} }}"
            for key in parameters
        ),
    ]
    return "\n".join(blocks) + "\n"


def _listed(name: str, items: Iterable[str]) -> str:
    lines = ",\n".join(f"  {{ {item} }}" for item in items)
    return f"{name} [\n{lines}\n]"


def _groups(devices: Sequence[str]) -> list[str]:
    if not devices:
        return ["kind: KIND_MODEL count: 1"]
    return [_group(*one) for one in Counter(map(_with_index, devices)).items()]


def _with_index(device: str) -> str:
    return "cuda:0" if device == "cuda" else device


def _group(device: str, count: int) -> str:
    kind, _, index = device.partition(":")
    return f"kind: KIND_GPU count: {count} gpus: [ {index} ]" if kind == "cuda" else f"kind: KIND_CPU count: {count}"


def _input(tensor: Input) -> str:
    return _tensor(tensor) + ("" if tensor.name == PROMPT else " optional: true")


def _tensor(tensor: Input | Output) -> str:
    kind = "STRING" if tensor.datatype == BYTES else tensor.datatype
    return f"name: {_text(tensor.name)} data_type: TYPE_{kind} dims: [ {', '.join(map(str, tensor.shape))} ]"


def _parameter(name: str, value: str) -> str:
    return f"parameters {{ key: {_text(name)} value {{ string_value: {_text(value)} }} }}"


def _text(value: str) -> str:
    """A quoted text: escapes of JSON are those of protobuf."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InputError(f"{value!r} is no text in UTF-8, which config.pbtxt has to be: rename it") from None
    return json.dumps(value, ensure_ascii=False)
