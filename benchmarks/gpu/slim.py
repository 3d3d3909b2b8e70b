"""Leave one GPU's code in a wheel: what is compiled for others is overwritten with zeros, which compress away.

A CUDA library holds its kernels compiled for every GPU that it supports, in the ELF section `.nv_fatbin`. The section
is a row of containers, each a header and entries, each of these a header and one compiled object or PTX text for one
architecture. The driver reads all headers and loads the object of its own GPU, so the others' contents do not matter.
Sizes and offsets stay, and so do all headers.

The layout is that of CUDA 11 to 13 (`fatbinary_section.h` of the CUDA toolkit names the container's header; the
entries' are not documented).
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
import struct
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SECTIONS = (".nv_fatbin", "__nv_relfatbin")
MAGIC = 0xBA55ED50
CONTAINER = struct.Struct("<IHHQ")  # magic, version, bytes of this header, bytes of the entries
ENTRY = struct.Struct(
    "<HHIQ8xHHI"
)  # kind, version, bytes of this header and of the content; minor, major, architecture
PTX, OBJECT = 1, 2
LIBRARY = re.compile(r"\.so(\.\d+)*$")


@dataclass(frozen=True, slots=True)
class Entry:
    """One architecture's code: where its content is in the file, its kind, and its architecture, such as 90."""

    start: int
    end: int
    kind: int
    architecture: int


def slimmed(content: bytes, compute_capability: str) -> bytes:
    """A library with the code of one GPU, such as "9.0"; the same content if it has no device code at all.

    Raises:
        ValueError: the library has no code for this GPU, or its device code is not understood.
    """
    gpu = architecture_of(compute_capability)
    result, kept, containers = bytearray(content), 0, 0
    for offset, size in sections(content):
        for entries in containers_of(content, offset, offset + size):
            containers += 1
            wanted = set(runnable(entries, gpu))
            kept += bool(wanted)
            for entry in entries:
                if entry not in wanted:
                    result[entry.start : entry.end] = bytes(entry.end - entry.start)
    if containers and not kept:
        raise ValueError(f"the library has no code for compute capability {compute_capability}")
    return bytes(result)


def architecture_of(compute_capability: str) -> int:
    """The number of an architecture: 90 for "9.0"."""
    match = re.fullmatch(r"(\d{1,2})\.(\d)", compute_capability)
    if match is None:
        raise ValueError(f"expected a compute capability such as 9.0, not {compute_capability!r}")
    return 10 * int(match[1]) + int(match[2])


def runnable(entries: list[Entry], gpu: int) -> Iterator[Entry]:
    """The entries of a container that a GPU can use: the newest objects of its generation that it runs, or else PTX."""
    objects = {e.architecture for e in entries if e.kind == OBJECT and e.architecture // 10 == gpu // 10}
    best = max((found for found in objects if found <= gpu), default=None)
    for entry in entries:
        if (entry.kind == OBJECT and entry.architecture == best) or (
            entry.kind == PTX and best is None and entry.architecture <= gpu
        ):
            yield entry


def sections(content: bytes) -> Iterator[tuple[int, int]]:
    """Offset and size of each section with device code."""
    from elftools.elf.elffile import ELFFile

    for section in ELFFile(io.BytesIO(content)).iter_sections():
        if section.name in SECTIONS and section["sh_type"] != "SHT_NOBITS":
            yield section["sh_offset"], section["sh_size"]


def containers_of(content: bytes, start: int, end: int) -> Iterator[list[Entry]]:
    """The entries of each container between two offsets. Raises `ValueError` for what is not understood."""
    at = start
    while at < end:
        if not any(content[at : at + 8]):  # containers begin at multiples of eight
            at += 8
            continue
        magic, _, header, size = _unpacked(CONTAINER, content, at, end)
        if magic != MAGIC or header < CONTAINER.size or at + header + size > end:
            raise ValueError(f"device code at {at:#x} has a layout that is not known")
        yield list(_entries(content, at + header, at + header + size))
        at += header + size


def _entries(content: bytes, start: int, end: int) -> Iterator[Entry]:
    at = start
    while at < end:
        kind, _, header, size, _, _, architecture = _unpacked(ENTRY, content, at, end)
        if header < ENTRY.size or at + header + size > end or kind not in (PTX, OBJECT):
            raise ValueError(f"device code at {at:#x} has a layout that is not known")
        yield Entry(at + header, at + header + size, kind, architecture)
        at += header + size


def _unpacked(layout: struct.Struct, content: bytes, at: int, end: int) -> tuple[int, ...]:
    if at + layout.size > end:
        raise ValueError(f"device code ends within a header at {at:#x}")
    return layout.unpack_from(content, at)


def pack(wheel: Path, target: Path, compute_capability: str | None) -> None:
    """Write a wheel for a transfer: compressed by LZMA, as pip reads it, and with the code of one GPU alone.

    Its list of files has the new hashes. With None, libraries stay as they are.
    """
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(target, "w") as new:
        changed: dict[str, bytes] = {}
        record = next(name for name in old.namelist() if name.endswith(".dist-info/RECORD"))
        for info in old.infolist():
            if info.filename == record:
                continue
            content = old.read(info)
            if compute_capability is not None and LIBRARY.search(info.filename):
                slim = slimmed(content, compute_capability)
                if slim != content:
                    changed[info.filename] = content = slim
            new.writestr(_like(info), content)
        new.writestr(_like(old.getinfo(record)), _record(old.read(record).decode(), changed))


def _like(info: zipfile.ZipInfo) -> zipfile.ZipInfo:
    """The same entry, to be compressed."""
    copy = zipfile.ZipInfo(info.filename, info.date_time)
    copy.external_attr, copy.compress_type = info.external_attr, zipfile.ZIP_LZMA
    return copy


def _record(text: str, changed: dict[str, bytes]) -> str:
    """The wheel's list of files with the hashes of changed ones."""
    lines = []
    for line in text.splitlines():
        name = line.rpartition(",")[0].rpartition(",")[0]
        if name in changed:
            digest = base64.urlsafe_b64encode(hashlib.sha256(changed[name]).digest()).rstrip(b"=").decode()
            line = f"{name},sha256={digest},{len(changed[name])}"
        lines.append(line)
    return "\n".join(lines) + "\n"
