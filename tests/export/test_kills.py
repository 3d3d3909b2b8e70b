"""Processes killed while they export or build: the old or the new bundle is whole, and the next one clears up."""

import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any
from unittest import mock

import pytest
from support.exports import SHAPES, Exported, _context

from latentrt.export import write
from latentrt.export.build import store
from latentrt.export.build.ort_graphs import build_ort_graphs
from latentrt.export.write import ExportOptions, export_bundle
from latentrt.runtime import Bundle, ExportError, files, in_place
from latentrt.runtime.in_place import clear_leftovers, folder_put_in_place

# Where a kill can do harm: each line of these files is a moment.
WRITERS = {module.__file__ for module in (in_place, store, files)}
# LATENTRT_KILLS=40 takes some ten minutes.
MANY = int(os.environ.get("LATENTRT_KILLS", "10"))
KILLS = [pytest.param(3, id="3"), pytest.param(MANY, id="many", marks=pytest.mark.slow)]


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def whole(path: Path) -> str:
    """The name of the checkpoint of a bundle whose files are all there and have their hashes."""
    bundle = Bundle.open(path)
    assert bundle.altered_files() == []
    return bundle.manifest.checkpoint.name


def lines_of(work: Callable[..., object], *arguments: Any, last: int | None = None) -> int:
    """Run this and return how many lines of `WRITERS` ran; kill the process at line `last`."""
    count = 0

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal count
        if frame.f_code.co_filename not in WRITERS:
            return None
        count += event == "line"
        if count == last:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)
    try:
        work(*arguments)
    finally:
        sys.settrace(None)
    return count


class Copier:
    """Stands in for the part of an export that takes minutes: each stage puts some files of a bundle there."""

    def __init__(self, _checkpoint: object, folder: Path, options: ExportOptions, _record: object) -> None:
        self.bundle, self.folder = Path(options.golden_prompt), folder

    def stages(self) -> Iterator[Callable[[], None]]:
        every = sorted(p for p in self.bundle.rglob("*") if p.is_file() and p.name != "bundle.json")
        parts = [every[i :: len(write.STAGES) - 1] for i in range(len(write.STAGES) - 1)]
        for part in (*parts, [self.bundle / "bundle.json"]):
            yield partial(self.copy, part)

    def copy(self, part: list[Path]) -> None:
        for file in part:
            target = self.folder / file.relative_to(self.bundle)
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, target)


def copied(bundle: Path, out: Path, exchange: Callable[[Path, Path], bool]) -> None:
    """An export with --overwrite that writes a copy of `bundle`."""
    with (
        mock.patch.object(write, "gc"),  # takes most of the time
        mock.patch.object(write, "Checkpoint"),
        mock.patch.object(write, "golden_scheduler", return_value=({}, "")),
        mock.patch.object(write, "_Writer", Copier),
        mock.patch.object(in_place, "exchange", exchange),
    ):
        export_bundle("checkpoint", out, ExportOptions(golden_prompt=str(bundle), overwrite=True))


def cannot(_one: Path, _other: Path) -> bool:
    """As on a file system that cannot exchange two folders."""
    return False


@pytest.mark.parametrize("exchange", [in_place.exchange, cannot], ids=["exchange", "renames"])
@pytest.mark.parametrize("kills", KILLS)
def test_a_killed_export_leaves_the_old_or_the_new_bundle(
    sd1: Exported, tmp_path: Path, caplog: pytest.LogCaptureFixture, exchange: Callable[[Path, Path], bool], kills: int
) -> None:
    out = tmp_path / "out"
    old, new = whole(SHAPES.bundle), whole(sd1.bundle)
    lines = lines_of(copied, sd1.bundle, out, exchange)  # the first has nothing to replace
    found = set()
    for line in random.Random(f"export {kills}").sample(range(1, lines + 20), kills):
        shutil.rmtree(out)
        shutil.copytree(SHAPES.bundle, out)
        killed_or_done(line, copied, sd1.bundle, out, exchange)
        if exchange is cannot:
            clear_leftovers(out)  # between two renames, the old one is under another name
        found.add(whole(out))
        caplog.clear()
        left = len(names(tmp_path)) - 1
        copied(sd1.bundle, out, exchange)
        assert names(tmp_path) == ["out"]
        assert whole(out) == new
        assert len([r for r in caplog.records if "killed process left" in r.message]) == left
    assert found <= {old, new}
    assert kills < 40 or found == {old, new}


def built(bundle: Path) -> None:
    for _ in build_ort_graphs(bundle, graphs=["vae_decoder", "vae_encoder", "denoise"]):
        pass


@pytest.mark.parametrize("kills", KILLS)
def test_a_killed_build_leaves_a_whole_bundle(tmp_path: Path, kills: int) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(SHAPES.bundle, bundle)
    lines = lines_of(built, bundle)
    expected = names(bundle), names(bundle / "engines"), len(Bundle.open(bundle).manifest.engines)
    counts = set()
    for line in random.Random(f"build {kills}").sample(range(1, lines), kills):
        shutil.rmtree(bundle)
        shutil.copytree(SHAPES.bundle, bundle)
        killed_or_done(line, built, bundle)
        whole(bundle)
        counts.add(len(Bundle.open(bundle).manifest.engines))
        built(bundle)
        whole(bundle)
        assert (names(bundle), names(bundle / "engines"), len(Bundle.open(bundle).manifest.engines)) == expected
    assert kills < 40 or len(counts) > 1


def killed_or_done(line: int, work: Callable[..., object], *arguments: Any) -> None:
    """Run this in a child process that is killed at a line, if it comes so far."""
    child = _context().Process(target=lines_of, args=(work, *arguments), kwargs={"last": line})
    child.start()
    child.join(120)
    assert child.exitcode in (0, -signal.SIGKILL)


def test_what_a_living_export_makes_is_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    out = tmp_path / "out"
    (tmp_path / ".out.0123abcd").mkdir()
    (tmp_path / ".outer.0123abcd").mkdir()  # of another target
    (tmp_path / ".out.notes").mkdir()
    with folder_put_in_place(out) as folder:
        (folder / "a").write_text("new")
        clear_leftovers(out)
        assert names(tmp_path) == sorted([folder.name, ".outer.0123abcd", ".out.notes"])
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert ".out.0123abcd" in record.message
    assert (out / "a").read_text() == "new"


@pytest.mark.parametrize("exchange", [in_place.exchange, cannot], ids=["exchange", "renames"])
def test_an_error_while_moving_keeps_the_old_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: Callable[[Path, Path], bool]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "a").write_text("old")

    def fails(one: Path, other: Path) -> Any:
        if one.name.startswith(".out.") and not one.name.endswith(".old"):
            raise OSError(5, "Input/output error")
        return rename(one, other)

    rename = Path.rename
    monkeypatch.setattr(Path, "rename", fails)
    monkeypatch.setattr(in_place, "exchange", cannot if exchange is cannot else fails)
    with pytest.raises(OSError, match="Input/output error"), folder_put_in_place(out) as folder:
        (folder / "a").write_text("new")
    assert names(tmp_path) == ["out"]
    assert (out / "a").read_text() == "old"


def test_the_parity_check_ends_with_its_parent() -> None:
    code = (
        "import os, subprocess, sys, time\n"
        "command = [sys.executable, '-m', 'latentrt.export.parity_child', str(os.getpid())]\n"
        "print(subprocess.Popen(command).pid, flush=True)\n"
        "time.sleep(100)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        time.sleep(0.5)
        parent.kill()
        deadline = time.monotonic() + 3  # it would wait for its stdin, which is open here
        while _lives(child) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not _lives(child)


def _lives(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(
    ("status", "errors", "message"),
    [
        (1, "Traceback (most recent call last):\n  ...\nRuntimeError: a\nRuntimeError: a b\n", "RuntimeError: a b"),
        (-9, "half a tr", "SIGKILL: most likely the memory ran out"),
        (2, "", "exit status 2"),
        (3, "WARNING\ndenoise: differs by 3\n", "^denoise: differs by 3$"),
    ],
)
def test_the_error_of_the_parity_check_is_one_line(status: int, errors: str, message: str) -> None:
    with pytest.raises(ExportError, match=message) as caught:
        raise write._parity_failure(status, errors)
    assert "\n" not in str(caught.value)
    assert (type(caught.value) is write.ParityError) == (status == 3)


def test_the_child_tells_its_error_in_its_last_line(capsys: pytest.CaptureFixture[str]) -> None:
    from latentrt.export import parity

    assert parity.main(lambda: "{}") == 1
    assert capsys.readouterr().err.splitlines()[-1] == "KeyError: 'source'"
    inner = ValueError("two\nlines")
    outer = SystemError("<function f> returned a result with an exception set")
    outer.__cause__ = inner
    assert parity._in_one_line(outer) == "ValueError: two lines"
