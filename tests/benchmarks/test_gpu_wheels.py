"""Wheels in parts: cut, joined, checked and installed; missing and altered parts are named."""

import json
import shutil
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
    """Two wheels in transfers: the second begins where the first ends."""
    folder = tmp_path / "wheels"
    wheels.prepare(
        tmp_path / "parts", [make_wheel(folder, "first", "x" * 700), make_wheel(folder, "second", "y" * 30)], PART
    )
    return tmp_path / "parts"


def file_of(parts: Path, name: str) -> Path:
    """A part, whichever transfer has it."""
    (file,) = parts.glob(f"*/{name}")
    return file


def value(target: Path, module: str) -> str:
    command = [sys.executable, "-c", f"import {module}; print({module}.value)"]
    return subprocess.run(command, env={"PYTHONPATH": str(target)}, capture_output=True, text=True, check=True).stdout


def test_parts_are_small_and_make_the_same_wheel(parts: Path, tmp_path: Path) -> None:
    records = json.loads((parts / "1/manifest.json").read_text())["wheels"]
    sizes = [
        sum(file.stat().st_size for file in (parts / str(n)).glob("*.whl.*"))
        for n in range(1, 1 + len(list(parts.iterdir())))
    ]
    assert sizes[:-1] == [PART] * (len(sizes) - 1)
    assert 0 < sizes[-1] <= PART
    assert sum(sizes) == sum((tmp_path / "wheels" / record["name"]).stat().st_size for record in records)
    for record in records:
        joined = wheels.join(parts, record, tmp_path)
        assert joined.read_bytes() == (tmp_path / "wheels" / record["name"]).read_bytes()


def test_parts_that_come_one_by_one(parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wheel is installed once, as soon as it is complete; its parts may be gone then."""
    here, target = tmp_path / "here", tmp_path / "site"
    here.mkdir()
    (problem,) = wheels.install(here, target)
    assert "0 different lists of wheels, expected one" in problem
    for name in ("1", "2"):
        shutil.copytree(parts / name, here / name)
    assert wheels.install(here, target) == ["first-1.0-py3-none-any.whl.003 is missing", *missing(parts, "second")]
    shutil.copytree(parts / "3", here / "3")
    assert wheels.install(here, target) == missing(parts, "second", arrived=1)
    assert value(target, "first") == "x" * 700 + "\n"
    for name in ("1", "2"):
        shutil.rmtree(here / name)
    for transfer in sorted(parts.iterdir())[3:]:
        shutil.copytree(transfer, here / transfer.name)
    installed = []
    pip = wheels._pip
    monkeypatch.setattr(wheels, "_pip", lambda *words: (installed.append(Path(words[-1]).name), pip(*words)))
    assert wheels.install(here, target) == []
    assert installed == ["second-1.0-py3-none-any.whl"]
    assert value(target, "second") == "y" * 30 + "\n"


def missing(parts: Path, name: str, *, arrived: int = 0) -> list[str]:
    """What `install` says of the parts of a wheel behind those that have arrived."""
    names = sorted(file.name for file in parts.glob(f"*/{name}*"))[arrived:]
    return [f"{name} is missing" for name in names]


@pytest.mark.parametrize("change", ["shorter", "one bit"])
def test_an_altered_part_is_named_and_nothing_is_installed(
    parts: Path, tmp_path: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = file_of(parts, "first-1.0-py3-none-any.whl.002")
    content = part.read_bytes()
    part.write_bytes(content[:-1] if change == "shorter" else bytes([content[0] ^ 1]) + content[1:])
    installed = []
    monkeypatch.setattr(wheels, "_pip", lambda *words: installed.append(Path(words[-1]).name))
    (tmp_path / "site").mkdir()
    assert wheels.install(parts, tmp_path / "site") == [f"{part.name} is altered: copy it again"]
    assert installed == ["second-1.0-py3-none-any.whl"]


def test_whole_parts_of_another_wheel_are_refused(parts: Path, tmp_path: Path) -> None:
    for file in parts.glob("*/manifest.json"):
        manifest = json.loads(file.read_text())
        manifest["wheels"][0]["sha256"] = "0" * 64
        file.write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"wrong hash of .*: prepare"):
        wheels.install(parts, tmp_path / "site")


def test_a_wheel_for_another_python_does_not_stop_the_others(tmp_path: Path, make_wheel: MakeWheel) -> None:
    other = make_wheel(tmp_path, "first", "x").rename(tmp_path / "first-1.0-cp27-cp27m-win32.whl")
    wheels.prepare(tmp_path / "parts", [other, make_wheel(tmp_path, "second", "y" * 100)], 10_000)
    (problem,) = wheels.install(tmp_path / "parts", tmp_path / "site")
    assert problem.startswith(f"{other.name} cannot be installed with ")
    assert value(tmp_path / "site", "second") == "y" * 100 + "\n"


def test_preparing_again_leaves_no_old_parts(parts: Path, tmp_path: Path, make_wheel: MakeWheel) -> None:
    other = make_wheel(tmp_path / "wheels", "second", "z" * 10)
    wheels.prepare(parts, [other], PART)
    assert {file.name.rpartition(".")[0] for file in parts.glob("*/*.whl.*")} == {other.name}


def test_transfers_of_two_preparations_are_not_mixed(parts: Path, tmp_path: Path, make_wheel: MakeWheel) -> None:
    wheels.prepare(tmp_path / "later", [make_wheel(tmp_path / "wheels", "third", "z")], PART)
    shutil.copytree(tmp_path / "later/1", parts / "9")
    (problem,) = wheels.install(parts, tmp_path / "site")
    assert "2 different lists of wheels, expected one" in problem


def test_the_command_needs_the_standard_library_alone() -> None:
    command = [sys.executable, "-S", "-m", "benchmarks.gpu.wheels", "--help"]
    assert "install" in subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_the_command_says_what_is_missing(parts: Path, tmp_path: Path) -> None:
    file_of(parts, "second-1.0-py3-none-any.whl.001").unlink()
    file_of(parts, "first-1.0-py3-none-any.whl.001").unlink()
    command = [sys.executable, "-m", "benchmarks.gpu.wheels", "install", parts, tmp_path / "site"]
    child = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, check=False)
    assert child.returncode == 1
    assert child.stderr.splitlines() == [
        "first-1.0-py3-none-any.whl.001 is missing",
        "second-1.0-py3-none-any.whl.001 is missing",
    ]
