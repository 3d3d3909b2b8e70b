"""Reads .npy files that somebody else wrote: the header first, and the data only where header and file agree."""

import ast
import math
import os
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from latentrt.runtime.errors import InputError
from latentrt.runtime.files import open_regular

_MAGIC = b"\x93NUMPY"
_MAX_HEADER = 1 << 14  # bytes; numpy writes 128
_MAX_DIMENSIONS = 8


def is_npy(given: object) -> bool:
    """Whether this is the path of a .npy file."""
    return isinstance(given, str | os.PathLike) and str(given).lower().endswith(".npy")


def read_npy(path: str | os.PathLike[str]) -> NDArray[Any]:
    """Map a .npy file of numbers, without pickles. Raises `InputError` if it is missing or invalid."""
    try:
        with open_regular(path) as file:
            dtype, fortran, shape = _header(file)
            start, end = file.tell(), file.seek(0, os.SEEK_END)
            if end - start != math.prod(shape) * dtype.itemsize:
                raise ValueError(f"its header says {dtype} {shape}, which its {end - start:,} bytes of data are not")
            if start == end:
                return np.empty(shape, dtype)
            return np.memmap(file, dtype, "r", start, shape, order="F" if fortran else "C")
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except (OSError, ValueError, OverflowError) as error:
        raise InputError(f"{str(path)[:300]} is not a valid .npy file: {str(error)[:300]}") from error


def _header(file: BinaryIO) -> tuple[np.dtype[Any], bool, tuple[int, ...]]:
    """dtype, whether the order is Fortran's, and shape; the data follow. The format is that of `numpy.lib.format`."""
    start = file.read(8)
    if start[:6] != _MAGIC or len(start) < 8 or start[6] not in (1, 2, 3):
        raise ValueError("it does not begin as a .npy file does")
    size = int.from_bytes(file.read(2 if start[6] == 1 else 4), "little")
    if size > _MAX_HEADER:
        raise ValueError(f"its header has {size:,} bytes; expected at most {_MAX_HEADER:,}")
    try:
        header = ast.literal_eval(file.read(size).decode("utf-8" if start[6] == 3 else "latin1"))
        descr, fortran, shape = header["descr"], header["fortran_order"], header["shape"]
        dtype = np.dtype(descr) if isinstance(descr, str) else None
    except Exception as error:  # the parser raises errors of many types for what is not Python
        raise ValueError(f"its header is damaged ({type(error).__name__})") from None
    if dtype is None or dtype.kind not in "biuf":
        raise ValueError(f"it holds {str(descr)[:80]}; expected numbers")
    whole = isinstance(shape, tuple) and all(type(side) is int and 0 <= side < 2**40 for side in shape)
    if not whole or len(shape) > _MAX_DIMENSIONS:
        raise ValueError(f"its header has the shape {str(shape)[:80]}; expected at most {_MAX_DIMENSIONS} sizes")
    return dtype, bool(fortran), shape
