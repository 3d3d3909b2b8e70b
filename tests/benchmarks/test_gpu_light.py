"""The tree made light: what moves away comes back, whatever ends the call."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.exports import ROOT

from benchmarks.gpu.light import HEAVY, LightError, light_bytes, light_tree, restore, sent_files

COMMAND = [sys.executable, "-m", "benchmarks.gpu.light"]


def git(root: Path, *words: str) -> str:
    return subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=True).stdout


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A repository with both heavy folders, an untracked and an ignored file, and an ignored folder."""
    root = tmp_path / "tree"
    files = {
        "engines/shapes/graphs/a.onnx": 5000,
        "tests/data/shapes/model.safetensors": 3000,
        "tests/data/prompts.json": 70,
        "tests/test_one.py": 11,
        "new.py": 13,
        "build/gpu_wheels/1/part": 400,
        ".gitignore": None,
    }
    for name, size in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"/build/\n" if size is None else bytes(size))
    git(tmp_path, "init", "-q", str(root))
    git(root, "add", ".gitignore", "engines", "tests")
    git(root, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "all")
    return root


def state(root: Path) -> dict[Path, bytes]:
    return {
        file.relative_to(root): file.read_bytes()
        for file in root.rglob("*")
        if file.is_file() and ".git" not in file.parts and "light" not in file.parts
    }


def test_what_is_sent(tree: Path) -> None:
    names = {str(file.relative_to(tree)) for file in sent_files(tree, [Path("build/gpu_wheels")])}
    assert names == {str(name) for name in state(tree)}
    assert sum(sent_files(tree).values()) == 5000 + 3000 + 70 + 11 + 13 + 8
    assert light_bytes(tree) == 11 + 13 + 8
    with light_tree(tree):
        assert sum(sent_files(tree, [Path("build/gpu_wheels")]).values()) == 11 + 13 + 8 + 400


def test_the_folders_come_back_after_an_error(tree: Path) -> None:
    before = state(tree)

    def fail() -> None:
        with light_tree(tree):
            assert not any((tree / name).exists() for name in HEAVY)
            assert git(tree, "status", "--short").count(" D ") == 3
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert state(tree) == before
    assert git(tree, "status", "--short") == "?? new.py\n"


def test_the_command_runs_another_and_has_its_status(tree: Path) -> None:
    before = state(tree)
    script = "import os, sys; sys.exit(7 if os.path.exists('new.py') and not os.path.exists('tests/data') else 1)"
    child = run(tree, "--carry", "build/gpu_wheels/1", "--", sys.executable, "-c", script)
    assert (child.returncode, child.stdout) == (7, "432 bytes in 4 files, of at most 67,108,864\n")
    assert state(tree) == before


def test_a_tree_above_the_limit_is_refused(tree: Path) -> None:
    before = state(tree)
    child = run(tree, "--limit", "31", "--", "touch", "ran")
    assert child.returncode == 2
    assert child.stderr == "light: too large for one transfer: carry less, or raise --limit\n"
    assert state(tree) == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_ends_it_with_everything_back(tree: Path, number: signal.Signals) -> None:
    before = state(tree)
    child = waiting(tree)
    child.send_signal(number)
    child.communicate(timeout=30)
    assert child.returncode != 0
    assert state(tree) == before


def test_after_a_kill_the_next_call_brings_everything_back(tree: Path) -> None:
    before = state(tree)
    for again in ([*COMMAND, "--restore"], [*COMMAND, "--", "true"]):
        child = waiting(tree)
        assert run(tree, "--", "true").stderr.startswith(f"light: {tree} is light already")
        child.kill()
        child.communicate(timeout=30)
        assert not (tree / HEAVY[0]).exists()
        subprocess.run(again, cwd=tree, env=environment(), check=True)
        assert state(tree) == before
    assert restore(tree) == []


def test_nothing_is_overwritten(tree: Path) -> None:

    def stand_in_the_way() -> None:
        with light_tree(tree):
            (tree / "tests/data").mkdir()
            (tree / "tests/data/mine").write_text("kept")

    with pytest.raises(LightError, match="exists, and so does"):
        stand_in_the_way()
    assert (tree / "tests/data/mine").read_text() == "kept"
    (tree / "tests/data/mine").unlink()
    assert restore(tree) == ["tests/data"]
    assert git(tree, "status", "--short") == "?? new.py\n"


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT)}


def run(tree: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    command = [*COMMAND, *words]
    return subprocess.run(command, cwd=tree, env=environment(), capture_output=True, text=True, check=False)


def waiting(tree: Path) -> "subprocess.Popen[str]":
    """The command while it waits for Enter, with the tree light."""
    child = subprocess.Popen(
        COMMAND, cwd=tree, env=environment(), text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    lines = [child.stdout.readline(), child.stdout.readline()]
    assert lines[1].startswith("light; Enter"), lines
    assert not (tree / HEAVY[0]).exists()
    return child
