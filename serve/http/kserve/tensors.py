"""Tensors as the protocol writes them: datatypes, values in JSON, and values as bytes. Knows no models.

Bytes are little-endian and in row-major order; an element of BYTES has its length before it, as four bytes.
"""

import math
import struct
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from latentrt.runtime.errors import InputError, shown, unknown

BYTES = "BYTES"
INTEGERS = tuple(f"{sign}INT{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64))
FLOATS = ("FP64", "FP32", "FP16")
_NUMPY: Mapping[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    **{f"INT{bits}": np.dtype(f"<i{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"UINT{bits}": np.dtype(f"<u{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"FP{bits}": np.dtype(f"<f{bits // 8}") for bits in (16, 32, 64)},
}
DATATYPES = (*_NUMPY, BYTES)
VALUES = 100_000  # in one tensor
_DIMENSIONS = 8
_LENGTH = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor that a client sent. `values`: in row-major order, as Python has them; those of BYTES may be texts."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    values: Sequence[Any]


def checked_shape(name: str, given: Any) -> tuple[int, ...]:
    """A shape; raises `InputError`."""
    whole = isinstance(given, list) and len(given) <= _DIMENSIONS
    if not whole or not all(isinstance(side, int) and not isinstance(side, bool) and side >= 0 for side in given):
        raise InputError(f"{name}: shape={shown(given)}: expected a list of at most {_DIMENSIONS} integers >= 0")
    if (count := math.prod(given)) > VALUES:
        raise InputError(f"{name}: a tensor of shape {given} has {count:,} values: expected at most {VALUES:,}")
    return tuple(given)


def checked_datatype(name: str, given: Any) -> str:
    """A datatype; raises `InputError`."""
    if not isinstance(given, str) or given not in DATATYPES:
        raise InputError(f"{name}: {unknown('datatype', str(given)[:40], DATATYPES)}")
    return given


def values_of_json(name: str, datatype: str, shape: tuple[int, ...], data: Any) -> list[Any]:
    """The values of `data`, which is flat or nested as the shape says; raises `InputError`."""
    if not isinstance(data, list):
        raise InputError(f"{name}: data={shown(data)}: expected a list")
    nested = any(isinstance(one, list) for one in data)
    values = list(_flattened(name, shape, shape, data)) if nested else data
    if len(values) != math.prod(shape):
        raise InputError(f"{name}: data has {len(values)} values: expected {math.prod(shape)}, as shape {[*shape]}")
    for value in values:
        if not _is_a(datatype, value):
            raise InputError(f"{name}: data holds {shown(value)}: expected values of the datatype {datatype}")
    return values


def _flattened(name: str, whole: tuple[int, ...], shape: tuple[int, ...], data: Any) -> Iterator[Any]:
    if not shape:
        yield data
        return
    if not isinstance(data, list) or len(data) != shape[0]:
        raise InputError(f"{name}: data is not nested as its shape {[*whole]} says: expected that, or a flat list")
    for one in data:
        yield from _flattened(name, whole, shape[1:], one)


def _is_a(datatype: str, value: Any) -> bool:
    if datatype == BYTES:
        return isinstance(value, str)
    if datatype == "BOOL" or isinstance(value, bool):
        return datatype == "BOOL" and isinstance(value, bool)
    if datatype in FLOATS:
        return isinstance(value, int | float)
    limits = np.iinfo(_NUMPY[datatype])
    return isinstance(value, int) and int(limits.min) <= value <= int(limits.max)


def values_of_bytes(name: str, datatype: str, shape: tuple[int, ...], data: memoryview) -> list[Any]:
    """The values of binary data, those of BYTES as bytes; raises `InputError` where its length is another."""
    count = math.prod(shape)
    if datatype == BYTES:
        return list(_elements(name, count, data))
    dtype = _NUMPY[datatype]
    if len(data) != (size := count * dtype.itemsize):
        raise InputError(
            f"{name}: {len(data)} bytes of binary data: expected {size} for {datatype} of shape {[*shape]}"
        )
    if datatype == "BOOL" and not {*data} <= {0, 1}:
        raise InputError(f"{name}: binary data of BOOL: expected bytes that are 0 or 1")
    values: list[Any] = np.frombuffer(data, dtype).tolist()
    return values


def _elements(name: str, count: int, data: memoryview) -> Iterator[bytes]:
    at = 0
    for number in range(count):
        end = at + _LENGTH.size
        if end > len(data):
            raise InputError(f"{name}: the binary data of BYTES ends before element {number} of {count}")
        (length,) = _LENGTH.unpack(data[at:end])
        at = end + length
        if at > len(data):
            raise InputError(
                f"{name}: element {number} of BYTES says it has {length} bytes, but {len(data) - end} are left"
            )
        yield bytes(data[end:at])
    if at < len(data):
        raise InputError(f"{name}: {len(data) - at} bytes of binary data are left after its {count} elements")


def bytes_of_elements(elements: Collection[bytes]) -> bytes:
    """Elements of BYTES as binary data."""
    return b"".join(part for element in elements for part in (_LENGTH.pack(len(element)), element))
