"""Wheels in parts: cut, joined, checked and installed; missing and altered parts are named."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.exports import ROOT

from benchmarks.gpu import wheels

PART = 500
MakeWheel = Callable[[Path, str, str], Path]


@pytest.fixture
def parts(tmp_path: Path, make_wheel: MakeWheel) -> Path:
    """Two wheels in parts."""
    folder = tmp_path / "wheels"
    wheels.prepare(
        tmp_path / "parts", [make_wheel(folder, "first", "x" * 700), make_wheel(folder, "second", "y" * 30)], PART
    )
    return tmp_path / "parts"


def value(target: Path, module: str) -> str:
    command = [sys.executable, "-c", f"import {module}; print({module}.value)"]
    return subprocess.run(command, env={"PYTHONPATH": str(target)}, capture_output=True, text=True, check=True).stdout


def test_parts_are_small_and_make_the_same_wheel(parts: Path, tmp_path: Path) -> None:
    records = json.loads((parts / "manifest.json").read_text())["wheels"]
    assert [len(record["parts"]) for record in records] == [2, 3]
    assert max(file.stat().st_size for file in parts.glob("*.whl.*")) == PART
    for record in records:
        joined = wheels.join(parts, record, tmp_path)
        assert joined.read_bytes() == (tmp_path / "wheels" / record["name"]).read_bytes()


def test_parts_that_come_one_by_one(parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wheel is installed once, as soon as it is complete."""
    here, target = tmp_path / "here", tmp_path / "site"
    here.mkdir()
    assert wheels.install(here, target) == [f"{here / 'manifest.json'} is missing: copy it first, or run prepare"]
    names = ["manifest.json", *sorted(file.name for file in parts.glob("second*"))]
    for name in names:
        (here / name).write_bytes((parts / name).read_bytes())
    assert wheels.install(here, target) == [f"first-1.0-py3-none-any.whl.00{i} is missing" for i in (1, 2, 3)]
    assert value(target, "second") == "y" * 30 + "\n"
    for file in parts.glob("first*"):
        (here / file.name).write_bytes(file.read_bytes())
    installed = []
    pip = wheels._pip
    monkeypatch.setattr(wheels, "_pip", lambda *words: (installed.append(Path(words[-1]).name), pip(*words)))
    assert wheels.install(here, target) == []
    assert installed == ["first-1.0-py3-none-any.whl"]
    assert value(target, "first") == "x" * 700 + "\n"


@pytest.mark.parametrize("change", ["shorter", "one bit"])
def test_an_altered_part_is_named_and_nothing_is_installed(
    parts: Path, tmp_path: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = parts / "first-1.0-py3-none-any.whl.002"
    content = part.read_bytes()
    part.write_bytes(content[:-1] if change == "shorter" else bytes([content[0] ^ 1]) + content[1:])
    installed = []
    monkeypatch.setattr(wheels, "_pip", lambda *words: installed.append(Path(words[-1]).name))
    (tmp_path / "site").mkdir()
    assert wheels.install(parts, tmp_path / "site") == [f"{part.name} is altered: copy it again"]
    assert installed == ["second-1.0-py3-none-any.whl"]


def test_whole_parts_of_another_wheel_are_refused(parts: Path, tmp_path: Path) -> None:
    manifest = json.loads((parts / "manifest.json").read_text())
    manifest["wheels"][0]["sha256"] = "0" * 64
    (parts / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"wrong hash of .*: prepare"):
        wheels.install(parts, tmp_path / "site")


def test_a_wheel_for_another_python_does_not_stop_the_others(tmp_path: Path, make_wheel: MakeWheel) -> None:
    other = make_wheel(tmp_path, "first", "x").rename(tmp_path / "first-1.0-cp27-cp27m-win32.whl")
    wheels.prepare(tmp_path / "parts", [other, make_wheel(tmp_path, "second", "y" * 100)])
    (problem,) = wheels.install(tmp_path / "parts", tmp_path / "site")
    assert problem.startswith(f"{other.name} cannot be installed with ")
    assert value(tmp_path / "site", "second") == "y" * 100 + "\n"


def test_preparing_again_leaves_no_old_parts(parts: Path, tmp_path: Path, make_wheel: MakeWheel) -> None:
    other = make_wheel(tmp_path / "wheels", "second", "z" * 10)
    wheels.prepare(parts, [other], PART)
    assert {file.name.rpartition(".")[0] for file in parts.glob("*.whl.*")} == {other.name}


def test_the_command_needs_the_standard_library_alone() -> None:
    command = [sys.executable, "-S", "-m", "benchmarks.gpu.wheels", "--help"]
    assert "install" in subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_the_command_says_what_is_missing(parts: Path, tmp_path: Path) -> None:
    (parts / "second-1.0-py3-none-any.whl.001").unlink()
    (parts / "first-1.0-py3-none-any.whl.001").unlink()
    command = [sys.executable, "-m", "benchmarks.gpu.wheels", "install", parts, tmp_path / "site"]
    child = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, check=False)
    assert child.returncode == 1
    assert child.stderr.splitlines() == [
        "second-1.0-py3-none-any.whl.001 is missing",
        "first-1.0-py3-none-any.whl.001 is missing",
    ]
