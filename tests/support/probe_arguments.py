"""Arguments for functions of the probe (`native.probe`), and what they answer."""

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .native import probe

# Type parameters of ctypes' functions are not known to mypy; these are addresses and sizes.
ERROR_SIZE = 1000


class Pixels(ctypes.Structure):
    """`latentrt_pixels`."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("height", ctypes.c_int32),
        ("width", ctypes.c_int32),
        ("channels", ctypes.c_int32),
        ("stride", ctypes.c_size_t),
    )


class Pair(ctypes.Structure):
    """`latentrt_pair`."""

    _fields_ = (("first", ctypes.c_int32), ("second", ctypes.c_int32))


def address(array: NDArray[Any] | None) -> ctypes.c_void_p:
    """Where an array's values are; it must be kept while the address is used."""
    if array is None:
        return ctypes.c_void_p(None)
    assert array.flags.c_contiguous
    return ctypes.c_void_p(array.ctypes.data)


def size(value: int) -> ctypes.c_size_t:
    """A `size_t`."""
    return ctypes.c_size_t(value)


def integer(value: int) -> ctypes.c_int64:
    """An `int64_t`."""
    return ctypes.c_int64(value)


def number(value: float) -> ctypes.c_double:
    """A `double`."""
    return ctypes.c_double(value)


def pixels(arrays: Sequence[NDArray[np.uint8]], stride: int = 0) -> "ctypes.Array[Pixels]":
    """Pictures (H, W) or (H, W, channels); the arrays must be kept."""
    structs = [
        Pixels(array.ctypes.data, *array.shape[:2], 1 if array.ndim == 2 else array.shape[2], stride)
        for array in arrays
    ]
    return (Pixels * len(structs))(*structs)


def error_of(call: Callable[[Any], Any]) -> str:
    """The text of what a function of the probe threw into its last argument, "" for nothing."""
    error = ctypes.create_string_buffer(ERROR_SIZE)
    call(error)
    return error.value.decode()


def text_of(name: str, *arguments: Any, room: int = 1 << 20) -> str:
    """What a function of the probe writes into a buffer, whose address and size are its last arguments."""
    function = probe()[name]
    function.restype = ctypes.c_size_t
    buffer = ctypes.create_string_buffer(room)
    length = function(*arguments, buffer, size(room))
    assert length < room
    return buffer.raw[:length].decode()
