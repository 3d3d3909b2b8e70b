"""The layers of a TensorRT engine as data, read from what the library logs of them, and the file that keeps them.

Knows neither the library nor ONNX.
"""

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from latentrt.runtime.bundle.strict_json import decode, encode
from latentrt.runtime.errors import BundleError
from latentrt.runtime.files import read_json

FORMAT = "latentrt.layers/1"

# What a library calls a type -> its name here, and bits of an element. Longer names first.
_TYPES = {
    "BFloat16": ("bf16", 16),
    "BF16": ("bf16", 16),
    "FP16": ("fp16", 16),
    "Half": ("fp16", 16),
    "FP8": ("fp8", 8),
    "FP4": ("fp4", 4),
    "FP32": ("fp32", 32),
    "Float": ("fp32", 32),
    "Int64": ("int64", 64),
    "Int32": ("int32", 32),
    "UInt8": ("uint8", 8),
    "Int8": ("int8", 8),
    "Int4": ("int4", 4),
    "Bool": ("bool", 8),
}
_BITS = dict(_TYPES.values())
_TENSOR = re.compile(r"\{ Name: (?P<name>.*?), (?:Location: \w+, )?Dimensions: \[(?P<shape>[-\d, ]*)\](?P<rest>.*?) \}")
_HEAD = re.compile(r"Name: (?P<name>.*?), LayerType: (?P<kind>[^,]*), Inputs: \[")


@dataclass(frozen=True, slots=True, eq=False)
class LayerTensor:
    """What a layer reads or writes: its type such as "fp16", and its shape, -1 where the size is not static."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int | None:
        """Its size; None if it is not static or the type is not known."""
        if self.dtype not in _BITS or any(size < 0 for size in self.shape):
            return None
        return -(-math.prod(self.shape) * _BITS[self.dtype] // 8)


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """A layer of an engine, mostly one kernel.

    Attributes:
        kind: what the library calls this kind of layer, such as "gemm" or "kgen" (a generated kernel).
        tactic: the kernel's name; empty where it is chosen when the engine is loaded.
        constants: weights.
        nodes: names of the ONNX nodes that it computes, or a part of them.
    """

    name: str
    kind: str
    tactic: str
    inputs: tuple[LayerTensor, ...]
    constants: tuple[LayerTensor, ...]
    outputs: tuple[LayerTensor, ...]
    nodes: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class _File:
    """The content of a file of layers."""

    format: str
    layers: tuple[Layer, ...]


def layers_from_text(text: str) -> tuple[Layer, ...]:
    """The layers that TensorRT or TensorRT for RTX logs with detailed verbosity; empty if the text has none."""
    # Not splitlines: TensorRT puts separators of records between the nodes of a layer.
    return tuple(filter(None, map(_layer, text.split("\n"))))


def layers_json(layers: Sequence[Layer]) -> bytes:
    """The content of the file that keeps layers beside their engine."""
    return json.dumps(encode(_File(FORMAT, tuple(layers))), ensure_ascii=False, separators=(",", ":")).encode()


def read_layers(path: Path) -> tuple[Layer, ...]:
    """The layers in a file. Raises `BundleError` if it cannot be read."""
    try:
        data = read_json(path)
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise ValueError(f"its format is not {FORMAT}")
        return decode(_File, data, path.name).layers
    except (OSError, ValueError) as error:  # StrictJSONError is one, too
        raise BundleError(f"{path} cannot be read: {error}. Build the engine again") from error


def _layer(line: str) -> Layer | None:
    head = _HEAD.match(line.strip())
    if head is None:
        return None
    body = line.strip()[head.end() :]
    inputs, _, rest = body.partition(", Outputs: [")
    inputs, _, constants = inputs.partition(", Constants: [")
    outputs, _, facts = rest.partition("TacticName: ")
    return Layer(
        name=head["name"],
        kind=head["kind"],
        tactic=facts.partition(", ")[0],
        inputs=tuple(_tensors(inputs)),
        constants=tuple(_tensors(constants)),
        outputs=tuple(_tensors(outputs)),
        nodes=tuple(dict.fromkeys(re.findall(r"\[ONNX Layer: ([^\]]*)\]", facts))),
    )


def _tensors(text: str) -> Iterator[LayerTensor]:
    for found in _TENSOR.finditer(text):
        shape = tuple(int(size) for size in found["shape"].split(",") if size.strip())
        said = found["rest"].partition("Datatype: ")[2] or found["rest"]
        yield LayerTensor(next((name for word, (name, _) in _TYPES.items() if word in said), "unknown"), shape)
