"""What tests of the Open Inference Protocol share: tensors of Triton's client, and bodies made by hand."""

import json
import struct
from collections.abc import Sequence
from typing import Any

import httpx
import numpy as np
import tritonclient.http as triton
from numpy.typing import NDArray
from tritonclient.utils import np_to_triton_dtype

INFER = "/v2/models/shapes/infer"
HEADER = "Inference-Header-Content-Length"
PROMPT = {"name": "prompt", "shape": [1], "datatype": "BYTES", "data": ["a star"]}


def tensor(name: str, values: Sequence[Any] | NDArray[Any], *, binary: bool = True) -> triton.InferInput:
    """An input; texts and bytes become BYTES."""
    given = np.asarray(values)
    array = np.array(values, object) if given.dtype.kind in "US" else given
    result = triton.InferInput(name, [*array.shape], np_to_triton_dtype(array.dtype))
    return result.set_data_from_numpy(array, binary_data=binary)


def wanted(*names: str, binary: bool = True) -> list[triton.InferRequestedOutput]:
    """Outputs."""
    return [triton.InferRequestedOutput(name, binary_data=binary) for name in names]


def one(name: str, datatype: str, data: Any, shape: list[int] | None = None, **fields: Any) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": [len(data)] if shape is None else shape, "data": data} | fields


def packed(*elements: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(element)) + element for element in elements)


def binary_body(*inputs: tuple[dict[str, Any], bytes], **fields: Any) -> tuple[bytes, dict[str, str]]:
    """A body with binary data, and its header; `size` of an input lies about its length."""
    entries = []
    for entry, data in inputs:
        size = entry.pop("size", len(data))
        entries.append({**entry, "parameters": {"binary_data_size": size}})
    head = json.dumps({"inputs": entries, **fields}).encode()
    return b"".join((head, *(data for _, data in inputs))), {HEADER: str(len(head))}


def refused(http: httpx.Client, status: int = 400, path: str = INFER, **request: Any) -> str:
    """The error, in the protocol's form."""
    if "json" in request:  # by the standard library, which writes halves of surrogate pairs, too
        request["content"] = json.dumps(request.pop("json"))
    answer = http.post(path, **request)
    assert answer.status_code == status, answer.text[:500]
    assert answer.json().keys() == {"error"}
    error: str = answer.json()["error"]
    return error
