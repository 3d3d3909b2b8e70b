"""Where the command line writes: places that cannot be written, and streams that are closed, full or of few letters."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.exports import SHAPES

from latentrt.runtime import InputError, Pipeline, files
from latentrt.runtime.cli.main import main
from latentrt.runtime.image import save_npy, save_png

DRAW = ["generate", "a star", "--steps", "1", "--seed", "2", "--height", "32", "--width", "32", "--device", "cpu"]
LATENTRT = [sys.executable, "-m", "latentrt.runtime.cli"]


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "kept"))
    (tmp_path / "kept").mkdir()
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").touch()


def full(path: Path) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


@pytest.mark.parametrize(
    ("out", "reason"),
    [
        ("folder.png", "it is a folder"),
        ("file/x.png", "Not a directory"),
        ("x" * 252 + ".png", "File name too long"),
        ("/proc/x.png", "cannot be written in the folder /proc: "),
        ("full/x.png", "No space left on device"),
    ],
)
def test_nothing_is_drawn_for_a_place_that_cannot_be_written(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, out: str, reason: str
) -> None:
    def refuses(*_: object, **__: object) -> Any:
        raise AssertionError("drawn")

    monkeypatch.setattr(Pipeline, "load", refuses)
    if out.startswith("full/"):
        monkeypatch.setattr(Path, "write_bytes", lambda self, _: full(self))
    for command in (
        [*DRAW, "-o", out],
        [*DRAW, "--save-latents", out.replace(".png", ".npy")] if out != "folder.png" else [*DRAW, "-o", out],
        ["schedule", "euler", "--plot", out],
        ["build", str(SHAPES.bundle), "--backend", "onnxruntime", "--engines", out],
    ):
        if command[0] == "build" and out == "folder.png":
            continue
        assert main(command) == 1
        error = capsys.readouterr().err
        assert error.startswith("latentrt: ")
        assert error.count("\n") == 1
        assert reason in error or command[0] == "build"
    assert sorted(p.name for p in Path().iterdir()) == ["file", "folder.png", "kept"]


def test_a_deleted_working_directory_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "gone").mkdir()
    os.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert main(DRAW) == 1
    assert "out.png cannot be written in the folder" in capsys.readouterr().err


def test_finished_images_are_kept(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk becomes full while they are drawn."""
    replace = Path.replace

    def is_full(self: Path, to: Path) -> Any:
        return full(to) if to.name.startswith("star") and "kept" not in str(to) else replace(self, to)

    monkeypatch.setattr(Path, "replace", is_full)
    command = [*DRAW, "--num-images", "2", "-o", "star.png"]
    assert main(command) == 1
    error = capsys.readouterr().err
    assert "star-0.png cannot be written" in error
    kept = sorted(Path("kept").rglob("*.png"), key=lambda file: file.name)
    assert [file.name for file in kept] == ["star-0.png", "star-1.png"]
    assert all(str(file.resolve()) in error for file in kept)
    Path("jobs.jsonl").write_text('{"prompt": "a star", "seed": 2}\n')
    assert main(["generate", "--jobs", "jobs.jsonl", *DRAW[2:], "-o", "star.png"]) == 1
    (third,) = {*Path("kept").rglob("*.png")} - {*kept}
    assert str(third.resolve()) in capsys.readouterr().err
    assert np.array_equal(np.asarray(Image.open(third)), np.asarray(Image.open(kept[0])))
    assert not list(Path().glob(".*"))


def test_a_long_name_is_no_obstacle() -> None:
    name = "ä" * 120 + "abcdefg.png"
    assert len(name.encode()) == 251
    save_png(Image.new("RGB", (8, 8)), Path(name))
    with pytest.raises(InputError, match="s a directory"):
        save_npy(np.zeros(3, np.float32), Path("folder.png"))
    assert Image.open(name).size == (8, 8)


def test_what_a_killed_writer_left_is_used_by_the_next() -> None:
    target = Path("x.json")
    code = (
        "import os, pathlib; from latentrt.runtime.files import written_whole\n"
        "with written_whole(pathlib.Path('x.json')) as file:\n"
        "    file.write_text('a longer text, half'); os.kill(os.getpid(), 9)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    assert len(list(Path().glob(".x*.partial.json"))) == 1
    with files.written_whole(target) as first:
        first.write_text("first")
        with files.written_whole(target) as second:
            assert second != first
            second.write_text("second")
        assert target.read_text() == "second"
    assert target.read_text() == "first"
    assert not list(Path().glob(".*"))


def shell(command: str, **more: Any) -> subprocess.CompletedProcess[str]:
    line = command.replace("latentrt", " ".join(LATENTRT))
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False, timeout=120, **more)


@pytest.mark.parametrize(
    ("command", "status", "error"),
    [
        ("latentrt info | true; exit ${PIPESTATUS[0]}", 141, ""),
        ("latentrt info > /dev/full", 1, "No space left on device\n"),
        ("latentrt generate --jobs - <&-", 1, "stdin, which is closed"),
        ("latentrt schedule euler --plot a.png 2>&- && test -f a.png", 0, ""),
        ("latentrt info >&-", 0, ""),
        ("PYTHONIOENCODING=ascii latentrt info", 0, ""),
    ],
)
def test_streams_that_are_closed_full_or_of_few_letters(command: str, status: int, error: str) -> None:
    ran = shell(command)
    assert ran.returncode == status, ran.stderr
    assert ran.stderr.endswith(error) if error.endswith("\n") else error in ran.stderr
    assert ran.stderr.count("\n") == (1 if error else 0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_command_with_its_status(number: int) -> None:
    child = subprocess.Popen(
        [*LATENTRT, "generate", "--jobs", "-"],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # where tests run in the background, children would inherit that it is ignored
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
    )
    assert child.stdin is not None
    assert child.stderr is not None
    child.stdin.write(b'{"prompt": 5}\nno\n')
    child.stdin.flush()

    import time

    time.sleep(4)
    child.send_signal(number)
    child.wait(60)  # with its stdin open
    _, errors = child.communicate()
    assert child.returncode in (128 + number, -number), errors
    assert b"Traceback" not in errors


def test_preview_does_not_take_the_prompt(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "--preview", "a star", *DRAW[2:], "-o", "a.png"]) == 0
    assert main([*DRAW, "-o", "b.png"]) == 0
    assert np.array_equal(np.asarray(Image.open("a.png")), np.asarray(Image.open("b.png")))
    assert main([*DRAW, "--preview", "rbg"]) == 1
    assert "did you mean 'rgb'" in capsys.readouterr().err


def test_help_is_about_flags(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["generate", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "in Python also" not in text
    assert "or a list with one" not in text
    assert "--crops-coords-top-left TOP LEFT" in text
