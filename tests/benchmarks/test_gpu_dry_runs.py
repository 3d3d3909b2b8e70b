"""The whole GPU check on the simulated GPU, with planted failures: each is reported, and none takes others along."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.exports import ROOT

from benchmarks.gpu import wheels

pytestmark = pytest.mark.slow

BACKENDS = ("onnxruntime", "tensorrt", "tensorrt_rtx")


class Check:
    """The check in a process of its own, and what it has written."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.out = folder, folder / "out"

    def start(self, faults: dict[str, Any], *words: str) -> "subprocess.Popen[str]":
        environment = {"PYTHONPATH": f"{ROOT}/typings:{ROOT}:{ROOT}/tests", "PATH": "/usr/bin:/bin"}
        script = ROOT / "tests" / "support" / "simulated_check.py"
        folders = ["--out", str(self.out), "--work", str(self.folder / "work"), "--graphs", str(self.folder)]
        command = [sys.executable, str(script), json.dumps(faults), *words, *folders]
        return subprocess.Popen(command, cwd=ROOT, env=environment, text=True, stdout=subprocess.DEVNULL)

    def run(self, faults: dict[str, Any], *words: str) -> int:
        return self.start(faults, *words).wait()

    def parts(self) -> dict[str, Any]:
        content = json.loads((self.out / "summary.json").read_text())
        return {part["part"]: part for part in content["parts"]}

    def verdicts(self) -> dict[str, str]:
        return {
            f"{name}.{job['backend']}".rstrip("."): job["verdict"]
            for name, part in self.parts().items()
            for job in part["jobs"]
        }


@pytest.fixture
def check(tmp_path: Path) -> Check:
    return Check(tmp_path)


def test_a_crash_takes_nothing_along(check: Check) -> None:
    """One library ends its first process, another one a later process: all else is found."""
    faults = {"crash": ["backends.tensorrt", "states.tensorrt_rtx"], "grace": 0.5}
    assert check.run(faults, "device", "backends", "states", "waits") == 1
    assert check.verdicts() == {
        "device": "passed",
        "backends.onnxruntime": "passed",
        "backends.tensorrt": "crashed",
        "backends.tensorrt_rtx": "passed",
        "states.onnxruntime": "passed",
        "states.tensorrt": "left out",
        "states.tensorrt_rtx": "crashed",
        "waits.onnxruntime": "passed",
        "waits.tensorrt": "left out",
        "waits.tensorrt_rtx": "passed",
    }
    parts = check.parts()
    assert parts["states"]["verdict"] == "crashed"
    assert len(parts["states"]["report"]["checks"]) == 5  # of ONNX Runtime
    assert parts["states"]["report"]["figures"]["before"] == 1  # what the other found before
    assert parts["waits"]["verdict"] == "passed"
    text = (check.out / "summary.txt").read_text()
    assert "tensorrt_rtx: process ended with status -11; last line of its log: about to crash" in text
    assert "tensorrt: left out: the part backends crashed with it" in text


def test_a_slow_gpu_does_not_exceed_the_budget(check: Check) -> None:
    """The part that takes too long keeps its findings, and the later ones are named."""
    faults = {"wait": 1.0, "needs": 4, "grace": 0.5}
    assert check.run(faults, *("device", "states", "waits", "older", "--seconds", "20")) == 1
    assert sum(part["seconds"] for part in check.parts().values()) < 20
    verdicts = check.verdicts()
    assert verdicts.pop("device") == "passed"
    assert verdicts.pop("states.onnxruntime") == "ran too long"
    assert len(verdicts) == 6
    assert {*verdicts.values()} == {"no time left"}
    assert not check.parts()["states"]["report"]["finished"]
    text = (check.out / "summary.txt").read_text()
    assert [line.split()[0] for line in text.split("\n\n")[0].splitlines()] == ["device", "states", "waits", "older"]


@pytest.fixture
def hanging(check: Check) -> Iterator["subprocess.Popen[str]"]:
    """A check whose second job hangs, and has started."""
    process = check.start({"hang": ["waits.onnxruntime"], "grace": 0.5}, "device", "waits", "older")
    log = check.out / "reports" / "waits.onnxruntime.json"
    while not log.exists():
        assert process.poll() is None
        time.sleep(0.1)
    yield process
    process.kill()
    process.wait()


def test_a_check_that_is_stopped_has_written_everything(check: Check, hanging: "subprocess.Popen[str]") -> None:
    hanging.send_signal(signal.SIGTERM)
    assert hanging.wait() == 1
    verdicts = check.verdicts()
    assert (verdicts["device"], verdicts["waits.onnxruntime"]) == ("passed", "stopped")
    assert {verdicts["waits.tensorrt"], verdicts["older.tensorrt_rtx"]} == {"not started"}


def test_a_check_that_is_killed_has_written_what_it_had(check: Check, hanging: "subprocess.Popen[str]") -> None:
    """And its job does not go on, which would disturb the next call."""
    (job,) = children(hanging.pid)
    hanging.kill()
    hanging.wait()
    verdicts = check.verdicts()
    assert (verdicts["device"], verdicts["waits.onnxruntime"]) == ("passed", "running")
    assert verdicts["older.tensorrt_rtx"] == "not started"
    end = time.monotonic() + 20
    while os.path.exists(f"/proc/{job}") and time.monotonic() < end:  # noqa: PTH110
        time.sleep(0.05)
    assert not Path(f"/proc/{job}").exists()


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_transfer_that_breaks_is_named(tmp_path: Path, make_wheel: Callable[[Path, str, str], Path]) -> None:
    """A part of a wheel is altered, one of another is missing, and the manifest of a third is not: it is installed."""
    made = [make_wheel(tmp_path / "made", name, name) for name in ("altered", "missing", "polygraphy")]
    folder = tmp_path / "wheels"
    wheels.prepare(folder, made, 400)
    altered, missing = sorted(folder.glob("*/altered*"))[0], sorted(folder.glob("*/missing*"))[-1]
    altered.write_bytes(bytes(altered.stat().st_size))
    missing.unlink()
    environment = {"PYTHON": sys.executable, "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    environment |= {"GPU_WHEELS": str(folder), "GPU_SITE": str(tmp_path / "site")}
    options = ["--out", tmp_path / "out", "--work", tmp_path / "work", "--device", "cpu", "--backend", "onnxruntime"]
    script = ROOT / "benchmarks" / "gpu_check.sh"
    command = [str(word) for word in (script, "device", "backends", *options)]
    child = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert f"{altered.name} is altered: copy it again" in child.stderr
    assert f"{missing.name} is missing" in child.stderr
    assert "continuing without the wheels named above" in child.stdout
    found = {p["part"]: p for p in json.loads((tmp_path / "out" / "summary.json").read_text())["parts"]}
    assert found["device"]["report"]["figures"]["modules"]["polygraphy"] == "no version"
    assert found["backends"]["verdict"] == "passed"
