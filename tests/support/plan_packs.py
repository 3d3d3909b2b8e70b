"""The library's plan packs through its probe, and a reader of packs that is written from the format's description."""

import ctypes
import json
import math
import struct
import zlib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from latentrt.runtime.scheduler import Plan

from .native import probe

SD1: Mapping[str, Any] = {
    "_class_name": "PNDMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "steps_offset": 1,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
}


class PackError(Exception):
    """The library's error: its status and its text."""

    def __init__(self, text: str) -> None:
        self.status = int(text.partition(" ")[0])
        super().__init__(text.partition(" ")[2])


class Packs:
    """`PlanPacks`."""

    def __init__(self, *files: Path, predicts: str = "epsilon") -> None:
        self._functions = probe()
        for name in ("packs_new", "packs_find", "plan_read"):
            getattr(self._functions, name).restype = ctypes.c_void_p
        for name in ("packs_names", "packs_name", "plan_array"):
            getattr(self._functions, name).restype = ctypes.c_size_t
        self._packs = ctypes.c_void_p(self._functions.packs_new())
        for file in files:
            error = ctypes.create_string_buffer(1000)
            self._functions.packs_add(self._packs, str(file).encode(), predicts.encode(), error)
            _raise(error)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._functions.packs_free(self._packs)

    @property
    def names(self) -> list[str]:
        """Names of schedulers."""
        text, names = ctypes.create_string_buffer(1000), []
        for i in range(self._functions.packs_names(self._packs)):
            self._functions.packs_name(self._packs, ctypes.c_size_t(i), text, ctypes.c_size_t(1000))
            names.append(text.value.decode())
        return names

    def find(self, name: str, steps: int, strength: float | None = None, *, distilled: bool = False) -> Plan:
        """The plan; raises `PackError`."""
        data, error = name.encode(), ctypes.create_string_buffer(1000)
        given = None if strength is None else ctypes.byref(ctypes.c_double(strength))
        length, count = ctypes.c_size_t(len(data)), ctypes.c_int64(steps)
        plan = self._functions.packs_find(self._packs, data, length, count, given, int(distilled), error)
        _raise(error)
        return _taken(plan)


def read_document(text: str | bytes) -> tuple[Plan, str]:
    """The plan of a document, and the prediction type of its scheduler."""
    functions = Packs()._functions
    data = text.encode() if isinstance(text, str) else text
    error, predicts = ctypes.create_string_buffer(1000), ctypes.create_string_buffer(100)
    plan = functions.plan_read(data, ctypes.c_size_t(len(data)), predicts, ctypes.c_size_t(100), error)
    _raise(error)
    return _taken(plan), predicts.value.decode()


def _raise(error: Any) -> None:
    if error.value:
        raise PackError(error.value.decode())


def _taken(address: int) -> Plan:
    """A plan of the library as one of Python, which checks it; frees the library's. Compares the facts about it."""
    functions, handle = probe(), ctypes.c_void_p(address)
    arrays: dict[str, NDArray[Any]] = {}
    for which, field in enumerate(fields(Plan)):
        values = ctypes.c_void_p()
        count = functions.plan_array(handle, ctypes.c_size_t(which), ctypes.byref(values))
        dtype = np.dtype(np.bool_ if field.name == "draws" else np.float32)
        assert values.value is not None
        array = np.frombuffer(ctypes.string_at(values.value, count * dtype.itemsize), dtype)
        shape = {"coefficients": (-1, 7, 9), "timesteps": (-1,), "draws": (-1,)}.get(field.name, (-1, 2))
        arrays[field.name] = array.reshape(shape)
    facts = (ctypes.c_size_t * 3)()
    functions.plan_facts(handle, facts)
    functions.plan_free(handle)
    plan = Plan.from_arrays(arrays)
    guided = bool((plan.guidance != [0, 1]).any())
    assert tuple(facts) == (bool(plan.initial[:, 1].any()), guided, plan.draws.sum())
    return plan


def differing(one: Plan, other: Plan) -> list[str]:
    """Names of the arrays that differ in a bit."""
    arrays = zip(one.to_arrays().items(), other.to_arrays().values(), strict=True)
    return [name for (name, a), b in arrays if a.shape != b.shape or a.tobytes() != b.tobytes()]


def parts(content: bytes) -> tuple[dict[str, Any], bytes]:
    """Index and data of a pack."""
    magic, version, crc, index, data = struct.unpack("<8sIIII", content[:24])
    assert (magic, version, len(content)) == (b"LRTPLANS", 1, 24 + index + data)
    assert crc == zlib.crc32(content[24:])
    return json.loads(content[24 : 24 + index]), content[24 + index :]


def joined(index: Mapping[str, Any] | bytes, data: bytes, *, version: int = 1) -> bytes:
    """A pack of these parts, with the right check sum."""
    text = index if isinstance(index, bytes) else json.dumps(index).encode()
    return struct.pack("<8sIIII", b"LRTPLANS", version, zlib.crc32(text + data), len(text), len(data)) + text + data


class ReadPack:
    """A pack, read table by table."""

    def __init__(self, content: bytes) -> None:
        self.index, data = parts(content)
        size = self.index["tables"]
        shapes: list[tuple[str, str, tuple[int, ...]]] = [
            ("values", "<u4", (size["values"],)),
            ("nodes", "<u4", (size["nodes"], 2)),
            ("plans", "<u4", (size["plans"], 2)),
            ("calls", "<u2", (size["calls"],)),
            ("starts", "<u2", (size["starts"],)),
            ("call_patterns", "u1", (size["call_patterns"], 71)),
            ("start_patterns", "u1", (size["start_patterns"], 16)),
        ]
        self.tables: dict[str, NDArray[Any]] = {}
        at = 0
        for name, kind, shape in shapes:
            count = math.prod(shape)
            self.tables[name] = np.frombuffer(data, kind, count, at).reshape(shape)
            at += count * np.dtype(kind).itemsize
        assert at == len(data)
        self._call_rows, first = self._rows("call", 1, 0)
        self._start_rows, _ = self._rows("start", 0, first)

    def _rows(self, kind: str, flags: int, first: int) -> tuple[list[NDArray[np.float32]], int]:
        rows, patterns = [], self.tables[f"{kind}_patterns"]
        for use in self.tables[f"{kind}s"]:
            codes = patterns[use][flags:]
            values = self.tables["values"][first : first + int((codes == 2).sum())]
            first += len(values)
            row, taken = np.zeros(len(codes), np.uint32), 0
            for i, code in enumerate(codes):
                if code == 2:
                    row[i] = values[taken]
                    taken += 1
                elif code > 2:
                    row[i] = values[code - 3]
                elif code == 1:
                    row[i] = np.float32(1).view(np.uint32)
            rows.append(row.view(np.float32))
        return rows, first

    def plan(self, number: int) -> Plan | None:
        """One of the plans; None where there is none."""
        start, node = map(int, self.tables["plans"][number])
        if not start:
            return None
        chain, node = [], node + 1
        while node:
            call, node = map(int, self.tables["nodes"][node - 1])
            chain.append(call)
        rows = np.stack([self._call_rows[call] for call in chain])
        patterns = self.tables["call_patterns"][self.tables["calls"][chain]]
        begin = self._start_rows[start - 1]
        return Plan(
            timesteps=rows[:, 0],
            coefficients=rows[:, 7:].reshape(-1, 7, 9),
            initial=begin[:14].reshape(7, 2),
            draws=patterns[:, 0],
            noise_levels=np.vstack([begin[14:], rows[:, 1:3]]),
            blend=rows[:, 3:5],
            guidance=rows[:, 5:7],
        )
