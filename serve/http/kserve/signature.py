"""Which tensors a model takes and gives, made from the table of options. Knows no bytes and no routes."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from latentrt.runtime.errors import InputError
from latentrt.runtime.request.metadata import BY_HASH
from latentrt.runtime.request.options import request_schema
from latentrt.serve.http.bodies import ALIASES, json_object

from .tensors import BYTES, FLOATS, INTEGERS, Tensor

PROMPT = "prompt"
IMAGE, PIXELS, SEED = "image", "pixels", "seed"
ANY = -1  # a side of any length
BY_NET = r"^control[a-z_]*\.[^.]"  # names of inputs for one ControlNet

# What clients may send for a datatype, without loss.
_TAKEN: Mapping[str, tuple[str, ...]] = {
    "INT64": INTEGERS,
    "FP64": (*FLOATS, *INTEGERS),
    "BOOL": ("BOOL",),
    BYTES: (BYTES,),
}
_DATATYPES = {"integer": "INT64", "number": "FP64", "boolean": "BOOL", "string": BYTES}


@dataclass(frozen=True, slots=True)
class Input:
    """An input.

    Attributes:
        shape: of one dimension, `ANY` where its length is free.
        listed: a single value is a list of one, too; otherwise it stands for itself.
        file: its elements are files.
        object: an element may be a JSON object.
        by_net: it may be one for each ControlNet, as inputs such as `control_image.canny`.
    """

    name: str
    datatype: str
    shape: tuple[int]
    listed: bool = False
    file: bool = False
    object: bool = False
    by_net: bool = False

    def value(self, tensor: Tensor) -> Any:
        """What a tensor says, as JSON of a call has it; files as bytes. Raises `InputError`."""
        if tensor.datatype not in _TAKEN[self.datatype]:
            raise InputError(f"{tensor.name}: the datatype {tensor.datatype} is not taken: expected {self.datatype}")
        count, (wanted,) = len(tensor.values), self.shape
        flat = tensor.shape and all(side == 1 for side in tensor.shape[1:])
        if not flat or not count or wanted not in (ANY, count):
            raise InputError(f"{tensor.name}: shape {[*tensor.shape]}: expected [{wanted if wanted != ANY else 'n'}]")
        values = [self._element(tensor.name, value) for value in tensor.values]
        return values if self.listed or count > 1 else values[0]

    def _element(self, name: str, value: Any) -> Any:
        if self.file:
            data = value.encode(errors="replace") if isinstance(value, str) else value
            return data.decode() if data.isascii() else data
        if isinstance(value, bytes):
            try:
                value = value.decode()
            except UnicodeDecodeError:
                raise InputError(f"{name}: an element of BYTES is not a text in UTF-8") from None
        return json_object(value.encode(errors="replace")) if self.object and value.startswith("{") else value


@cache
def inputs() -> Mapping[str, Input]:
    """The inputs of every model: the prompt, and each option that JSON can hold."""
    return {name: _input(name, schema) for name, schema in request_schema()["properties"].items()}


def input_named(name: str) -> tuple[Input | None, str]:
    """An input by its name or by the short name of its option, None for others; and the net whose it is, or ""."""
    option, dot, net = name.partition(".")
    found = inputs().get(ALIASES.get(option, option))
    if dot and (found is None or not found.by_net or not net):
        return None, ""
    return found, net


def inputs_of(nets: Iterable[str]) -> list[Input]:
    """The inputs of a model with these ControlNets."""
    by_net = [one for one in inputs().values() if one.by_net]
    return [*inputs().values(), *(replace(one, name=f"{one.name}.{net}") for net in nets for one in by_net)]


def _input(name: str, schema: Mapping[str, Any]) -> Input:
    file = name in BY_HASH
    if "anyOf" in schema:  # one value, or a list of them, or one for each net
        one, *_, last = schema["anyOf"]
        by_net = last.get("type") == "object"
        many = (ANY,) if not by_net or "anyOf" in one else (1,)
        return Input(name, _datatype(one.get("anyOf", [one])[0]), many, file=file, by_net=by_net)
    if schema.get("type") == "array":
        count = schema["maxItems"] if schema.get("maxItems") == schema.get("minItems", ()) else ANY
        return Input(name, _datatype(schema["items"]), (count,), listed=True, file=file)
    kinds = schema.get("type")
    return Input(name, _datatype(schema), (1,), file=file, object=isinstance(kinds, list) and "object" in kinds)


def _datatype(schema: Mapping[str, Any]) -> str:
    kind = schema.get("type", "string")  # enumerations are of words
    return _DATATYPES[kind[0] if isinstance(kind, list) else kind]


@dataclass(frozen=True, slots=True)
class Output:
    """An output; -1 is a side of any length."""

    name: str
    datatype: str
    shape: tuple[int, ...]


OUTPUTS: Mapping[str, Output] = {
    output.name: output
    for output in (
        Output(IMAGE, BYTES, (ANY,)),  # base64 of a picture's file
        Output(PIXELS, "UINT8", (ANY, ANY, ANY, 3)),
        Output(SEED, "INT64", (ANY,)),
    )
}
USUAL = (IMAGE, SEED)  # where a request names none
