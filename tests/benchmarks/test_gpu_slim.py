"""Wheels with the code of one GPU: nothing but other GPUs' compiled code changes."""

import base64
import hashlib
import struct
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from benchmarks.gpu.slim import pack, slimmed

PTX, OBJECT = 1, 2


@dataclass(frozen=True)
class Code:
    """One entry: its kind, its architecture, and the bytes of its header (64, or 112 as for sm_120)."""

    kind: int
    architecture: int
    header: int = 64
    size: int = 40


CONTAINERS = [
    [Code(OBJECT, 75), Code(OBJECT, 80), Code(OBJECT, 90, size=96), Code(OBJECT, 90), Code(OBJECT, 120, header=112)],
    [Code(OBJECT, 80), Code(OBJECT, 86), Code(PTX, 80)],
    [Code(OBJECT, 75, size=8), Code(PTX, 120), Code(PTX, 70)],
    [Code(OBJECT, 120, header=112)],
]
# Which entries each GPU can use, by container.
USED = {
    "9.0": [{2, 3}, {2}, {2}, set()],
    "8.9": [{1}, {1}, {2}, set()],
    "8.0": [{1}, {0}, {2}, set()],
    "12.0": [{4}, {2}, {1, 2}, {0}],
    "7.5": [{0}, set(), {0}, set()],
}


def section(containers: list[list[Code]]) -> tuple[bytes, dict[tuple[int, int], tuple[int, int]]]:
    """The content of `.nv_fatbin`, and where the code of each entry is in it."""
    rng = np.random.default_rng(5)
    content, places = b"", {}
    for number, codes in enumerate(containers):
        body = b""
        for index, code in enumerate(codes):
            head = struct.pack(
                "<HHIQIIHHI", code.kind, 0x101, code.header, code.size, code.size - 3, 0, 1, 8, code.architecture
            )
            body += head.ljust(code.header, b"\x11")
            start = len(content) + 16 + len(body)
            places[number, index] = (start, start + code.size)
            body += rng.integers(1, 256, code.size, np.uint8).tobytes()
        content += struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(body)) + body
        content += bytes(8 * (number % 2))  # padding
    return content, places


def library(folder: Path, content: bytes, name: str = ".nv_fatbin") -> Path:
    """A shared library with this section, made by the compiler."""
    (folder / "code.bin").write_bytes(content)
    (folder / "a.s").write_text(
        f'.section {name},"a"\n.balign 8\n.incbin "code.bin"\n.section .note.GNU-stack,"",@progbits\n'
    )
    (folder / "b.c").write_text("int answer(void) { return 42; }\n")
    command = ["gcc", "-shared", "-fPIC", "-o", "libcode.so", "a.s", "b.c"]
    subprocess.run(command, cwd=folder, check=True)
    return folder / "libcode.so"


@pytest.mark.parametrize("gpu", list(USED))
@pytest.mark.parametrize("name", [".nv_fatbin", "__nv_relfatbin"])
def test_only_code_that_the_gpu_cannot_use_is_gone(tmp_path: Path, gpu: str, name: str) -> None:
    content, places = section(CONTAINERS)
    original = library(tmp_path, content, name).read_bytes()
    offset = original.index(content)
    expected = bytearray(original)
    for (container, index), (start, end) in places.items():
        if index not in USED[gpu][container]:
            expected[offset + start : offset + end] = bytes(end - start)
    assert slimmed(original, gpu) == expected != original


def test_a_library_without_device_code_stays(tmp_path: Path) -> None:
    original = library(tmp_path, b"text", ".other").read_bytes()
    assert slimmed(original, "9.0") == original


def test_a_gpu_without_code_is_refused(tmp_path: Path) -> None:
    content, _ = section([[Code(OBJECT, 75), Code(PTX, 120)], [Code(OBJECT, 120)]])
    with pytest.raises(ValueError, match=r"no code for compute capability 9\.0"):
        slimmed(library(tmp_path, content).read_bytes(), "9.0")


@pytest.mark.parametrize("given", ["90", "sm_90", "9", ""])
def test_what_is_no_compute_capability(given: str) -> None:
    with pytest.raises(ValueError, match=r"such as 9\.0"):
        slimmed(b"", given)


@pytest.mark.parametrize(
    ("at", "value", "said"),
    [
        (0, b"\x51", "not known"),  # another magic number
        (8, b"\xff\xff", "not known"),  # a container that is longer than the section
        (16, b"\x07", "not known"),  # another kind of code
        (24, b"\xff\xff", "not known"),  # an entry that is longer than its container
    ],
)
def test_a_layout_that_is_not_known_is_refused(tmp_path: Path, at: int, value: bytes, said: str) -> None:
    content, _ = section(CONTAINERS[:1])
    damaged = content[:at] + value + content[at + len(value) :]
    with pytest.raises(ValueError, match=said):
        slimmed(library(tmp_path, damaged).read_bytes(), "9.0")


def test_a_section_that_ends_within_a_header(tmp_path: Path) -> None:
    content, _ = section(CONTAINERS[:1])
    with pytest.raises(ValueError, match=r"ends within a header|not known"):
        slimmed(library(tmp_path, content + content[:12]).read_bytes(), "9.0")


def test_pip_installs_the_slim_wheel(tmp_path: Path) -> None:
    content, _ = section(CONTAINERS)
    original = library(tmp_path, content).read_bytes()
    wheel, info = tmp_path / "code-1.0-py3-none-any.whl", "code-1.0.dist-info"
    files = {
        "code/__init__.py": b"value = 3\n",
        "code/libcode.so.1": original,
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: code\nVersion: 1.0\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    lines = [f"{name},{digest(data)},{len(data)}\n" for name, data in files.items()]
    files[f"{info}/RECORD"] = "".join([*lines, f"{info}/RECORD,,\n"]).encode()
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    slim = tmp_path / "slim" / wheel.name
    slim.parent.mkdir()
    pack(wheel, slim, "9.0")
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-index",
        "--no-deps",
        "--target",
        str(tmp_path / "site"),
        str(slim),
    ]
    subprocess.run(command, check=True)
    assert (tmp_path / "site/code/libcode.so.1").read_bytes() == slimmed(original, "9.0")
    assert (tmp_path / "site/code/__init__.py").read_bytes() == files["code/__init__.py"]
    with zipfile.ZipFile(slim) as archive:
        for line in archive.read(f"{info}/RECORD").decode().splitlines()[:-1]:
            name, hashed, size = line.split(",")
            data = archive.read(name)
            assert (hashed, int(size)) == (digest(data), len(data))


def digest(data: bytes) -> str:
    return "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
