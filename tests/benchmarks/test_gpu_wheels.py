"""Wheels that travel in parts: cut, joined, checked and installed; what is missing or altered is named."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import gpu_wheels
import pytest

PART = 500


def wheel(folder: Path, name: str, content: str) -> Path:
    """A pure Python wheel of one module, of a few parts."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}-1.0-py3-none-any.whl"
    info = f"{name}-1.0.dist-info"
    files = {
        f"{name}.py": f"value = {content!r}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{file},,\n" for file in (*files, f"{info}/RECORD"))
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in files.items():
            archive.writestr(file, text)
    return path


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """Two wheels in parts."""
    wheels = [wheel(tmp_path / "wheels", "first", "x" * 700), wheel(tmp_path / "wheels", "second", "y" * 30)]
    gpu_wheels.prepare(tmp_path / "parts", wheels, PART)
    return tmp_path / "parts"


def value(target: Path, module: str) -> str:
    command = [sys.executable, "-c", f"import {module}; print({module}.value)"]
    return subprocess.run(command, env={"PYTHONPATH": str(target)}, capture_output=True, text=True, check=True).stdout


def test_parts_are_small_and_make_the_same_wheel(parts: Path, tmp_path: Path) -> None:
    records = json.loads((parts / "manifest.json").read_text())["wheels"]
    assert [len(record["parts"]) for record in records] == [2, 3]
    assert max(file.stat().st_size for file in parts.glob("*.whl.*")) == PART
    for record in records:
        joined = gpu_wheels.join(parts, record, tmp_path)
        assert joined.read_bytes() == (tmp_path / "wheels" / record["name"]).read_bytes()


def test_parts_that_come_one_by_one(parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wheel is installed as soon as it is whole, and once."""
    here, target = tmp_path / "here", tmp_path / "site"
    here.mkdir()
    assert gpu_wheels.install(here, target) == [f"{here / 'manifest.json'} is missing: copy it first, or run prepare"]
    names = ["manifest.json", *sorted(file.name for file in parts.glob("second*"))]
    for name in names:
        (here / name).write_bytes((parts / name).read_bytes())
    assert gpu_wheels.install(here, target) == [f"first-1.0-py3-none-any.whl.00{i} is missing" for i in (1, 2, 3)]
    assert value(target, "second") == "y" * 30 + "\n"
    for file in parts.glob("first*"):
        (here / file.name).write_bytes(file.read_bytes())
    installed = []
    pip = gpu_wheels._pip
    monkeypatch.setattr(gpu_wheels, "_pip", lambda *words: (installed.append(Path(words[-1]).name), pip(*words)))
    assert gpu_wheels.install(here, target) == []
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
    monkeypatch.setattr(gpu_wheels, "_pip", lambda *words: installed.append(Path(words[-1]).name))
    (tmp_path / "site").mkdir()
    assert gpu_wheels.install(parts, tmp_path / "site") == [f"{part.name} is altered: copy it again"]
    assert installed == ["second-1.0-py3-none-any.whl"]


def test_whole_parts_of_another_wheel_are_refused(parts: Path, tmp_path: Path) -> None:
    manifest = json.loads((parts / "manifest.json").read_text())
    manifest["wheels"][0]["sha256"] = "0" * 64
    (parts / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="is another file: prepare"):
        gpu_wheels.install(parts, tmp_path / "site")


def test_a_wheel_for_another_python_does_not_keep_the_others_from_it(tmp_path: Path) -> None:
    other = wheel(tmp_path, "first", "x").rename(tmp_path / "first-1.0-cp27-cp27m-win32.whl")
    gpu_wheels.prepare(tmp_path / "parts", [other, wheel(tmp_path, "second", "y" * 100)])
    (problem,) = gpu_wheels.install(tmp_path / "parts", tmp_path / "site")
    assert problem.startswith(f"{other.name} cannot be installed with ")
    assert value(tmp_path / "site", "second") == "y" * 100 + "\n"


def test_preparing_again_leaves_no_old_parts(parts: Path, tmp_path: Path) -> None:
    other = wheel(tmp_path / "wheels", "second", "z" * 10)
    gpu_wheels.prepare(parts, [other], PART)
    assert {file.name.rpartition(".")[0] for file in parts.glob("*.whl.*")} == {other.name}


def test_the_command_says_what_is_missing(parts: Path, tmp_path: Path) -> None:
    (parts / "second-1.0-py3-none-any.whl.001").unlink()
    (parts / "first-1.0-py3-none-any.whl.001").unlink()
    command = [sys.executable, gpu_wheels.__file__, "install", parts, tmp_path / "site"]
    child = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert child.returncode == 1
    assert child.stderr.splitlines() == [
        "second-1.0-py3-none-any.whl.001 is missing",
        "first-1.0-py3-none-any.whl.001 is missing",
    ]
