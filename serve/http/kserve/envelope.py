"""Bodies of the protocol: JSON, or JSON and then the binary data of tensors. Knows no models and no options."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from fastapi import Response
from fastapi.responses import JSONResponse
from numpy.typing import NDArray

from latentrt.runtime.errors import InputError, shown, unknown
from latentrt.serve.http.bodies import json_object

from .tensors import BYTES, Tensor, bytes_of_elements, checked_datatype, checked_shape, values_of_bytes, values_of_json

HEADER = "Inference-Header-Content-Length"
BINARY = "application/octet-stream"
_FIELDS = ("id", "parameters", "inputs", "outputs")
_MOST_NAMED = 100  # inputs or outputs
_SURROGATE = re.compile("[\ud800-\udfff]")
# Parameters of tensors: what they do here; content types are hints for other servers.
_OF_INPUTS, _OF_OUTPUTS = ("binary_data_size", "content_type"), ("binary_data", "content_type")


@dataclass(frozen=True, slots=True)
class Asked:
    """A request for inference.

    Attributes:
        outputs: the names of those that are wanted, and whether their data shall be binary; {} where none is named.
        binary: whether all outputs shall be binary that do not say otherwise.
    """

    id: str | None
    parameters: Mapping[str, Any]
    inputs: Sequence[Tensor]
    outputs: Mapping[str, bool | None]
    binary: bool


def read_request(body: bytes, header_length: str | None) -> Asked:
    """A request's body; raises `InputError`. `header_length`: the header `HEADER`, where JSON is not all of it."""
    end = len(body)
    if header_length is not None:
        if not header_length.isascii() or not header_length.isdigit() or int(header_length[:20]) > len(body):
            raise InputError(f"{HEADER}: {header_length[:20]}: expected an integer up to the body's {len(body)} bytes")
        end = int(header_length)
    document = json_object(body[:end])
    for name in document:
        if name not in _FIELDS:
            raise InputError(f"{unknown('field', name, _FIELDS)}; options are inputs or parameters")
    identity = document.get("id")
    if identity is not None and not _is_sendable(identity):
        raise InputError(f"id={shown(identity)}: expected a text of at most 1000 characters of Unicode")
    parameters = dict(_object("parameters", document.get("parameters")))
    binary = _flag("binary_data_output", parameters.pop("binary_data_output", None)) or False
    inputs = _read_inputs(_named("inputs", document.get("inputs")), memoryview(body)[end:])
    named = _named("outputs", document.get("outputs") or [])
    outputs = {name: _wants_binary(name, entry) for name, entry in named.items()}
    return Asked(identity, parameters, inputs, outputs, binary)


def _is_sendable(identity: Any) -> bool:
    """Whether this is a text that UTF-8 can hold: JSON may have halves of surrogate pairs."""
    return isinstance(identity, str) and len(identity) <= 1000 and not _SURROGATE.search(identity)


def _named(what: str, given: Any) -> dict[str, dict[str, Any]]:
    """The entries of a list by their names; raises `InputError`."""
    if not isinstance(given, list) or len(given) > _MOST_NAMED:
        raise InputError(f"{what}: expected a list of at most {_MOST_NAMED} objects with a name")
    result: dict[str, dict[str, Any]] = {}
    for one in given:
        if not isinstance(one, dict) or not isinstance(name := one.get("name"), str):
            raise InputError(f"{what}: expected objects with a name, got {shown(one)}")
        if name in result:
            raise InputError(f"{what}: {shown(name)} is there twice")
        result[name] = one
    return result


def _object(what: str, given: Any) -> Mapping[str, Any]:
    if given is not None and not isinstance(given, dict):
        raise InputError(f"{what}={shown(given)}: expected an object")
    return given or {}


def _flag(what: str, given: Any) -> bool | None:
    if given is not None and not isinstance(given, bool):
        raise InputError(f"{what}={shown(given)}: expected true or false")
    return given


def _parameters(name: str, entry: Mapping[str, Any], fields: Sequence[str], known: Sequence[str]) -> Mapping[str, Any]:
    """The parameters of an input or output whose fields are checked; raises `InputError`."""
    for field in entry:
        if field not in fields:
            raise InputError(f"{name[:80]}: {unknown('field', field, fields)}")
    parameters = _object(f"{name[:80]}: parameters", entry.get("parameters"))
    for parameter in parameters:
        if parameter not in known:
            raise InputError(f"{name[:80]}: {unknown('parameter', parameter, known)}")
    return parameters


def _wants_binary(name: str, entry: Mapping[str, Any]) -> bool | None:
    parameters = _parameters(name, entry, ("name", "parameters"), _OF_OUTPUTS)
    return _flag(f"{name[:80]}: binary_data", parameters.get("binary_data"))


def _read_inputs(entries: Mapping[str, Mapping[str, Any]], binary: memoryview) -> list[Tensor]:
    """The tensors; binary data stands in the order of the inputs that have some."""
    result = []
    for name, entry in entries.items():
        called = name[:80]
        parameters = _parameters(name, entry, ("name", "shape", "datatype", "parameters", "data"), _OF_INPUTS)
        datatype = checked_datatype(called, entry.get("datatype"))
        shape, size = checked_shape(called, entry.get("shape")), parameters.get("binary_data_size")
        if (size is None) == (entry.get("data") is None):
            raise InputError(f"{called}: expected either data, or the parameter binary_data_size")
        if size is None:
            values = values_of_json(called, datatype, shape, entry["data"])
        else:
            if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= len(binary):
                raise InputError(
                    f"{called}: binary_data_size={shown(size)}: expected an integer up to the {len(binary)} bytes "
                    f"that are left after the JSON and other inputs; {HEADER} says where they begin"
                )
            values, binary = values_of_bytes(called, datatype, shape, binary[:size]), binary[size:]
        result.append(Tensor(name, datatype, shape, values))
    if len(binary):
        raise InputError(f"{len(binary)} bytes of binary data belong to no input: see binary_data_size")
    return result


Values = NDArray[Any] | list[bytes]  # an array, or elements of BYTES, which are ASCII


@dataclass(frozen=True, slots=True, eq=False)
class Given:
    """A tensor of an answer."""

    name: str
    datatype: str
    values: Values
    binary: bool

    @property
    def shape(self) -> list[int]:
        """Its sides."""
        return [*self.values.shape] if isinstance(self.values, np.ndarray) else [len(self.values)]


def written(facts: Mapping[str, Any], outputs: Sequence[Given], headers: Mapping[str, str]) -> Response:
    """An answer: JSON, or where an output is binary JSON and binary data. `facts`: its fields besides the outputs."""
    entries, parts = [], []
    for output in outputs:
        entry: dict[str, Any] = {"name": output.name, "datatype": output.datatype, "shape": output.shape}
        if output.binary:
            parts.append(_bytes_of(output))
            entry["parameters"] = {"binary_data_size": len(parts[-1])}
        else:
            entry["data"] = _json_of(output)
        entries.append(entry)
    content = {**facts, "outputs": entries}
    if not parts:
        return JSONResponse(content, headers=dict(headers))
    head = json.dumps(content).encode()
    return Response(b"".join((head, *parts)), media_type=BINARY, headers={**headers, HEADER: str(len(head))})


def _bytes_of(output: Given) -> bytes:
    if isinstance(output.values, list):
        return bytes_of_elements(output.values)
    return output.values.tobytes()


def _json_of(output: Given) -> list[Any]:
    if output.datatype == BYTES:
        return [element.decode() for element in output.values]
    values: list[Any] = np.asarray(output.values).ravel().tolist()
    return values
