"""Weights of a bundle's graphs as arrays, read at the offsets in the manifest."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentrt.runtime.arrays import DTYPES, Float32
from latentrt.runtime.bundle import AnyBundle, Weight
from latentrt.runtime.errors import BundleError

_WEIGHTS = ("float32", "float16", "bfloat16")  # dtypes of stored weights


def stored_weight(bundle: AnyBundle, use: Weight) -> NDArray[Any]:
    """An initializer in its stored dtype, bfloat16 as uint16. Raises `BundleError` if it is inside the ONNX file."""
    if use.offset is None or use.stored_dtype not in _WEIGHTS:
        raise BundleError(f"{bundle.path}: {use.initializer} of {use.graph} is not in the external data")
    path = bundle.file(f"{bundle.graph(use.graph).file}.data")
    return np.memmap(path, DTYPES[use.stored_dtype].numpy, "r", use.offset, use.shape)


def to_float32(array: NDArray[Any], dtype: str) -> Float32:
    """Convert an array of dtype `dtype` to float32; bfloat16 is uint16."""
    if dtype == "bfloat16":
        wide: Float32 = (array.astype(np.uint32) << 16).view(np.float32)
        return wide
    return array.astype(np.float32)


def from_float32(array: Float32, dtype: str) -> NDArray[Any]:
    """Round to dtype `dtype`, half to even; bfloat16 becomes uint16."""
    if dtype != "bfloat16":
        return array.astype(dtype)
    bits = np.ascontiguousarray(array).view(np.uint32)
    rounded: NDArray[Any] = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return rounded


def scaled(array: NDArray[Any], factor: float, dtype: str) -> NDArray[Any]:
    """An array of dtype `dtype` times a factor, rounded once; bfloat16 is uint16."""
    if factor == 1:
        return array
    return from_float32(to_float32(array, dtype) * np.float32(factor), dtype)
