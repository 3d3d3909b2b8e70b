"""Array types shared by the whole runtime, and the table of dtypes in a bundle.

numpy has no bfloat16, so such arrays are uint16; the 16 bits are the upper half of a float32.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

Float32 = NDArray[np.float32]
# Graph -> initializer -> new values in its stored dtype (bfloat16 as uint16).
NewWeights = Mapping[str, Mapping[str, NDArray[Any]]]
# Runs a graph, given by name, on named inputs; returns all outputs by name.
RunGraph = Callable[[str, Mapping[str, NDArray[Any]]], Mapping[str, NDArray[Any]]]
# Of the output `hidden_states` (n, L, …), only these of axis 1; None is all.
Layers = Sequence[int] | None
# The same for text encoders, of which few layers are needed.
RunEncoder = Callable[[str, Mapping[str, NDArray[Any]], Layers], Mapping[str, NDArray[Any]]]


@dataclass(frozen=True, slots=True)
class DType:
    """A dtype of the bundle format: bytes per value, the numpy dtype that holds it, its ONNX and safetensors codes."""

    bytes: int
    numpy: DTypeLike
    onnx: int
    safetensors: str


def with_layers(outputs: dict[str, NDArray[Any]], layers: Layers) -> dict[str, NDArray[Any]]:
    """The outputs of a graph with these layers alone."""
    if layers is None:
        return outputs
    return outputs | {"hidden_states": outputs["hidden_states"][:, list(layers)]}


DTYPES = {
    "float64": DType(8, np.float64, 11, "F64"),
    "float32": DType(4, np.float32, 1, "F32"),
    "float16": DType(2, np.float16, 10, "F16"),
    "bfloat16": DType(2, np.uint16, 16, "BF16"),
    "int64": DType(8, np.int64, 7, "I64"),
    "int32": DType(4, np.int32, 6, "I32"),
    "uint8": DType(1, np.uint8, 2, "U8"),
}
