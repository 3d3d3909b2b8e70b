"""Weights of a bundle's graphs as arrays, read where the manifest says they lie; and files of safetensors.

numpy has no bfloat16: its 16 bits are the upper half of a float32's, and are kept as uint16.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentrt.runtime.arrays import Float32
from latentrt.runtime.bundle import Bundle, Weight
from latentrt.runtime.errors import BundleError, InputError

_RAW = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16}
_SAFETENSORS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def stored_weight(bundle: Bundle, use: Weight) -> NDArray[Any]:
    """An initializer as it is stored, bfloat16 as uint16. Raises `BundleError` where it lies inside the ONNX file."""
    if use.offset is None or use.stored_dtype not in _RAW:
        raise BundleError(f"{bundle.path}: {use.initializer} of {use.graph} does not lie in the external data")
    path = bundle.file(f"{bundle.graph(use.graph).file}.data")
    return np.memmap(path, _RAW[use.stored_dtype], "r", use.offset, use.shape)


def to_float32(array: NDArray[Any], dtype: str) -> Float32:
    """An array of the named type as float32."""
    if dtype == "bfloat16":
        wide: Float32 = (array.astype(np.uint32) << 16).view(np.float32)
        return wide
    return array.astype(np.float32)


def from_float32(array: Float32, dtype: str) -> NDArray[Any]:
    """Round to the named type, halves to even; bfloat16 as uint16."""
    if dtype != "bfloat16":
        return array.astype(dtype)
    bits = np.ascontiguousarray(array).view(np.uint32)
    rounded: NDArray[Any] = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return rounded


def read_safetensors(path: Path) -> tuple[dict[str, Float32], dict[str, str]]:
    """All floating-point tensors of a file as float32, and its metadata; `InputError` where it is no such file."""
    from safetensors import SafetensorError, deserialize, safe_open

    try:
        with safe_open(path, "np") as file:  # checks the header and every offset, before anything large is read
            metadata = file.metadata() or {}
        entries: list[tuple[str, dict[str, Any]]] = deserialize(path.read_bytes())  # type: ignore[no-untyped-call]
        return {name: _tensor(name, entry) for name, entry in entries}, metadata
    except FileNotFoundError as error:
        raise InputError(f"{path} is not there") from error
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path} is not a whole safetensors file: {error}") from error


def _tensor(name: str, entry: Mapping[str, Any]) -> Float32:
    dtype = _SAFETENSORS.get(entry["dtype"])
    if dtype is None:
        raise ValueError(f"{name} has the type {entry['dtype']}; expected {', '.join(_SAFETENSORS)}")
    raw = np.dtype(np.uint16 if dtype == "bfloat16" else dtype)
    return to_float32(np.frombuffer(entry["data"], raw).reshape(entry["shape"]), dtype)
