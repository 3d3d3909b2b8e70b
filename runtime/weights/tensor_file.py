"""Reads safetensors files whole, as float32, from whoever sent them. Knows nothing of LoRA."""

import json
import stat
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentrt.runtime.errors import InputError

from .stored import to_float32

_MAX_HEADER = 100_000_000  # the format's own limit
# Codes of safetensors -> how the values lie in the file; floats become float32, whole numbers int64.
_FLOATS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "F8_E4M3": "u1", "F8_E5M2": "u1"}
_WHOLE = {"I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1"}
_DTYPES = {**_FLOATS, **_WHOLE, "BOOL": "u1"}
_KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}


def require_regular_file(path: Path) -> None:
    """Raise `InputError` at once for what is not a readable file: a pipe would be waited for, a device has no end."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISREG(mode):
            path.open("rb").close()
            return
    except FileNotFoundError as error:
        what = f"is a link to {path.readlink()}, which does not exist" if path.is_symlink() else "does not exist"
        raise InputError(f"{path} {what}") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    raise InputError(f"{path} is {_KINDS.get(stat.S_IFMT(mode), 'a device')}; expected a file")


def read_safetensors(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """The tensors of a file, floats as float32 and whole numbers as int64, and its metadata.

    Raises `InputError` if the file is missing or invalid, or has a dtype that is not read, NaN or infinity.
    """
    from safetensors import SafetensorError, safe_open

    require_regular_file(path)
    try:
        size, header = _header(path)
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        for name, entry in entries.items():
            if (dtype := entry["dtype"]) not in _DTYPES:
                raise InputError(
                    f"{path} is a safetensors file with {name} in dtype {dtype}, which is not supported: convert it to "
                    f"one of {', '.join(_DTYPES)}"
                )
        with safe_open(path, "np") as file:  # checks all names, shapes and offsets
            metadata = file.metadata() or {}
        content = path.read_bytes()
        tensors = {name: _tensor(content, 8 + size, entry) for name, entry in entries.items()}
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except (SafetensorError, ValueError, AttributeError, TypeError, KeyError, RecursionError) as error:
        raise InputError(f"{path} is not a valid safetensors file: {error}") from error
    for name, tensor in tensors.items():
        if not np.isfinite(tensor).all():
            raise InputError(f"{path}: {name} contains NaN or infinity. Was its training or conversion interrupted?")
    return tensors, metadata


def _header(path: Path) -> tuple[int, dict[str, Any]]:
    """The size of the header and what it says."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > _MAX_HEADER:
            raise ValueError(f"its header has {size} bytes")
        header: dict[str, Any] = json.loads(file.read(size))
        return size, header


def _tensor(content: bytes, start: int, entry: dict[str, Any]) -> NDArray[Any]:
    code, offset = entry["dtype"], start + entry["data_offsets"][0]
    stored = np.ndarray(tuple(entry["shape"]), _DTYPES[code], content, offset)
    if code not in _FLOATS:
        return stored.astype(np.int64)
    if code == "F8_E4M3":
        values: NDArray[Any] = _E4M3[stored]
        return values
    if code == "F8_E5M2":  # the upper half of a float16
        return (stored.astype(np.uint16) << 8).view(np.float16).astype(np.float32)
    with np.errstate(over="ignore"):  # infinity is reported by name
        return to_float32(stored, "bfloat16" if code == "BF16" else "float")


def _float8_e4m3() -> NDArray[np.float32]:
    """The 256 values of float8_e4m3fn: 4 bits of exponent with bias 7, 3 of fraction, and no infinity."""
    bits = np.arange(256)
    exponent, fraction = bits >> 3 & 15, (bits & 7) / 8
    sizes = np.where(exponent > 0, (1 + fraction) * 2.0 ** (exponent - 7), fraction * 2.0**-6)
    values = np.where(bits & 128, -sizes, sizes)
    values[bits & 127 == 127] = np.nan
    return values.astype(np.float32)


_E4M3 = _float8_e4m3()
