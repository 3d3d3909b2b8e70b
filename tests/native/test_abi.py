"""The border of the library: what it exports, where fields lie, and that programs of every kind can use it."""

import ctypes
import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest
from support.exports import ROOT, SHAPES
from support.native import OpenOptions, RequestStruct, Verification, built, library, onnxruntime_library

NATIVE = ROOT / "native"


def _abi() -> ModuleType:
    spec = importlib.util.spec_from_file_location("abi", NATIVE / "tools" / "abi.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(command: Sequence[object], **environment: str) -> str:
    """The output of a command that must succeed."""
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env={**os.environ, **environment})
    assert done.returncode == 0, f"{' '.join(words)}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done.stdout


def test_the_border_is_the_recorded_one() -> None:
    """A change is deliberate: `python native/tools/abi.py out/native/liblatentrt.so --write`."""
    assert _abi().record(built() / "liblatentrt.so") == (NATIVE / "abi.txt").read_text()


def test_exactly_the_documented_functions_are_exported() -> None:
    declared = {re.search(r"(\w+)\(", line)[1] for line in _abi().functions()}  # type: ignore[index]
    assert set(_abi().exports(built() / "liblatentrt.so")) == declared


def test_the_structs_of_these_tests_are_those_of_the_header() -> None:
    record = (NATIVE / "abi.txt").read_text()
    for kind, name in (
        (OpenOptions, "latentrt_open_options"),
        (RequestStruct, "latentrt_request"),
        (Verification, "latentrt_verification"),
    ):
        block = record.split(f"struct {name}: ")[1].split("\n")
        assert block[0] == f"{ctypes.sizeof(kind)} bytes"
        for line, (field, *_) in zip(block[1:], kind._fields_, strict=False):
            offset, _, found = line.split()
            assert (found, int(offset)) == (field, getattr(kind, field).offset)


def test_versions() -> None:
    version = re.search(r'version = "(.*)"', (ROOT / "pyproject.toml").read_text())
    assert version is not None
    assert library().latentrt_version().decode() == version[1]
    assert library().latentrt_abi_version() == 0


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `cmake --install` put the library."""
    prefix = tmp_path_factory.mktemp("prefix")
    run(["cmake", "--install", built(), "--prefix", prefix])
    return prefix


def _draws(command: Sequence[object], picture: Path, prefix: Path) -> bytes:
    environment = {"LATENTRT_ONNXRUNTIME": str(onnxruntime_library())}
    (library_folder,) = {path.parent for path in prefix.rglob("liblatentrt.so")}
    run([*command, picture], LD_LIBRARY_PATH=str(library_folder), **environment)
    return picture.read_bytes()


@pytest.mark.slow
def test_programs_find_the_installed_library(installed: Path, tmp_path: Path) -> None:
    """By find_package in C++ and C, by pkg-config, and by ctypes: all draw the same file."""
    run(["cmake", "-S", NATIVE / "examples", "-B", tmp_path / "build", f"-DCMAKE_PREFIX_PATH={installed}"])
    run(["cmake", "--build", tmp_path / "build"])
    files = [
        _draws([tmp_path / "build" / name, SHAPES.bundle], tmp_path / f"{name}.png", installed)
        for name in ("draw", "draw-c")
    ]
    (found,) = installed.rglob("latentrt.pc")
    flags = run(["pkg-config", "--cflags", "--libs", "latentrt"], PKG_CONFIG_PATH=str(found.parent)).split()
    c11 = ["-std=c11", "-Wall", "-Wextra", "-Werror", "-pedantic"]
    run(["cc", *c11, NATIVE / "examples" / "draw.c", "-o", tmp_path / "by-pkg-config", *flags])
    files.append(_draws([tmp_path / "by-pkg-config", SHAPES.bundle], tmp_path / "pkg-config.png", installed))
    (shared,) = installed.rglob("liblatentrt.so.0")
    python = ["python3", NATIVE / "examples" / "draw.py", shared, SHAPES.bundle]
    assert len({*files}) == 1
    # Without a seed the picture is another one.
    assert _draws(python, tmp_path / "ctypes.png", installed).startswith(b"\x89PNG")


@pytest.mark.slow
def test_packages(tmp_path: Path) -> None:
    """The archive works where it is unpacked, and the .deb holds the same files."""
    run(["cpack", "--config", built() / "CPackConfig.cmake", "-B", tmp_path])
    (archive,) = tmp_path.glob("*.tar.gz")
    (deb,) = tmp_path.glob("*.deb")
    unpacked, from_deb = tmp_path / "unpacked", tmp_path / "deb"
    shutil.unpack_archive(archive, unpacked)
    run(["dpkg-deb", "-x", deb, from_deb])
    (prefix,) = unpacked.iterdir()
    names = {path.name for path in from_deb.rglob("*") if path.is_file()}
    assert names == {path.name for path in prefix.rglob("*") if path.is_file()}
    assert "Package: latentrt" in run(["dpkg-deb", "-I", deb])
    run(["cmake", "-S", NATIVE / "examples", "-B", tmp_path / "build", f"-DCMAKE_PREFIX_PATH={prefix}"])
    run(["cmake", "--build", tmp_path / "build", "--target", "draw"])
    assert _draws([tmp_path / "build" / "draw", SHAPES.bundle], tmp_path / "out.png", prefix).startswith(b"\x89PNG")
    (shared,) = prefix.rglob("liblatentrt.so.0")
    assert shared.stat().st_size <= 3 << 20
