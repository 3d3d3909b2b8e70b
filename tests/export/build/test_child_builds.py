"""Engines are built in a process of its own: what it says and raises arrives here, and its death is an error."""

import hashlib
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
import psutil
import pytest
from onnx import helper
from support import child_builds
from support.exports import SHAPES
from support.simulator import machine

from latentrt.export.build.child_process import ChildDiedError, call_in_child
from latentrt.export.build.profiles import buckets_from_options
from latentrt.export.build.trt_builder import TrtBuilder
from latentrt.export.build.trt_engines import build_engines
from latentrt.export.build.trt_options import BuildOptions
from latentrt.runtime import ExportError, InputError
from latentrt.runtime.bundle import Bundle, EngineList
from latentrt.runtime.cli.main import main

RTX = "tensorrt_rtx"
LATENTRT = [sys.executable, "-m", "latentrt.runtime.cli"]


def nothing(_phase: str, _share: float) -> None:
    pass


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Path(shutil.copytree(SHAPES.bundle, tmp_path / "shapes"))


@pytest.fixture(autouse=True)
def _no_process_is_left() -> Iterator[None]:
    before = {child.pid for child in psutil.Process().children()}
    yield
    assert {child.pid for child in psutil.Process().children()} <= before


def content(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def of_kind(process: psutil.Process) -> list[psutil.Process]:
    """The processes that build for a process."""
    return [child for child in process.children() if "latentrt.export.build.child" in child.cmdline()]


def wait_for(found: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 60
    while not (value := found()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return value


# --- the call ---------------------------------------------------------------------------------------------------------


def test_what_a_function_says_arrives(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    said: list[tuple[str, float]] = []
    assert call_in_child(child_builds.say, "words", lambda *progress: said.append(progress)) == "WORDS"
    assert said == [("first", 0.25), ("second", 0.5)]
    assert [(record.name, record.levelname, record.getMessage()) for record in caplog.records] == [
        ("latentrt.child_builds", "WARNING", "words, a warning")
    ]
    out, err = capfd.readouterr()
    assert out == ""
    assert err.splitlines() == ["from native code", "from Python"]


def test_debug_lines_come_where_they_are_wanted(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "latentrt"):
        call_in_child(child_builds.say, "words", nothing)
    assert caplog.messages == ["words, a warning", "words, too much"]


def test_errors_are_raised_here() -> None:
    with pytest.raises(InputError) as caught:
        call_in_child(child_builds.fail, "ours", nothing)
    assert str(caught.value) == "no such size; expected 512"
    assert 'raise InputError("no such size' in caught.value.__notes__[0]
    with pytest.raises(RuntimeError, match="LocalError: cannot be pickled"):
        call_in_child(child_builds.fail, "local", nothing)


def test_an_error_of_the_caller_ends_the_process() -> None:
    def refuse(_phase: str, _share: float) -> None:
        raise ZeroDivisionError

    began = time.monotonic()
    with pytest.raises(ZeroDivisionError):
        call_in_child(child_builds.wait, 60.0, refuse)
    assert time.monotonic() - began < 30


def test_large_results_arrive_whole() -> None:
    size = 64 << 20
    assert hashlib.sha256(call_in_child(child_builds.big, size, nothing)).digest() == (
        hashlib.sha256(child_builds.big(size, nothing)).digest()
    )


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals")
@pytest.mark.parametrize(
    ("how", "text", "killed", "crashed"),
    [
        ("fault", "SIGSEGV (Segmentation fault)", False, True),
        ("SIGABRT", "SIGABRT (Aborted)", False, True),
        ("SIGKILL", "SIGKILL (Killed)", True, False),
        (3, "exit status 3", False, False),
    ],
)
def test_how_a_process_died(how: str | int, text: str, killed: bool, crashed: bool) -> None:
    with pytest.raises(ChildDiedError) as caught:
        call_in_child(child_builds.die, how, nothing)
    assert (str(caught.value), caught.value.killed, caught.value.crashed) == (text, killed, crashed)


def test_statuses_of_windows() -> None:
    death = ChildDiedError(0xC0000005)
    assert (death.how, death.killed, death.crashed) == ("exit status 0xc0000005", False, True)


def test_a_process_ends_with_its_parent() -> None:
    code = (
        "from latentrt.export.build.child_process import call_in_child\n"
        "from support.child_builds import wait\n"
        "call_in_child(wait, 60.0, lambda number, _: print(number, flush=True))\n"
    )
    path = {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | path) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
        assert psutil.wait_procs([child], timeout=10)[0]


# --- builds that die --------------------------------------------------------------------------------------------------


def share_a_query(bundle: Path) -> None:
    """Give `denoise` two nodes of attention with one query, on which TensorRT for RTX 1.7 ends with SIGSEGV."""
    file = bundle / "denoise.onnx"
    model = onnx.load(file, load_external_data=False)
    nodes = model.graph.node
    at = next(i for i, node in enumerate(nodes) if node.op_type == "Attention")
    second = onnx.NodeProto()
    second.CopyFrom(nodes[at])
    added = helper.make_node("Add", ["first", "second"], list(nodes[at].output))
    nodes[at].output[0], second.output[0], second.name = "first", "second", "second"
    nodes.insert(at + 1, second)
    nodes.insert(at + 2, added)
    onnx.save(model, file)
    written = file.read_bytes()
    manifest = json.loads((bundle / "bundle.json").read_text())
    manifest["files"][file.name] = {"size": len(written), "sha256": hashlib.sha256(written).hexdigest()}
    (bundle / "bundle.json").write_text(json.dumps(manifest))


@pytest.mark.slow
def test_a_crash_of_the_library_is_an_error(bundle: Path) -> None:
    """A real one. Engines that were finished before stay, and others can be built."""
    share_a_query(bundle)
    command = ["build", str(bundle), "--backend", RTX, "--compute-capability", "8.9"]
    graphs = ["--graph", "context", "--graph", "denoise", "--graph", "time"]
    ended = subprocess.run([*LATENTRT, *command, *graphs], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert re.fullmatch(
        r"latentrt: tensorrt_rtx 1\.\S+ crashed while it built denoise B=1 \S.*, with SIGSEGV \(Segmentation fault\)\. "
        r"That is a fault of the library: try another version .* with --backend onnxruntime; other graphs than denoise "
        r"can be built with --graph NAME\n",
        ended.stderr,
    )
    assert [line.split()[0] for line in ended.stdout.splitlines()] == ["context"]
    engines = EngineList.of_bundle(Bundle.open(bundle))
    (record,) = engines.engines
    assert record.graph == "context"
    assert engines.intact(record)
    assert {f"engines/{file.name}" for file in (bundle / "engines").iterdir()} == {record.file, record.layers}
    assert main([*command, "--graph", "time"]) == 0


def test_a_killed_build_says_that_memory_may_be_short(bundle: Path) -> None:
    before = content(bundle)
    killed: list[psutil.Process] = []

    def kill(*_: Any) -> None:
        if not killed:
            killed.extend(of_kind(psutil.Process()))
            killed[0].kill()

    built = build_engines(bundle, RTX, lambda b: buckets_from_options(b.manifest), graphs=["denoise"], progress=kill)
    message = r"the build of denoise B=1 .* ended by SIGKILL \(Killed\): most likely the memory ran out\. Close other"
    with pytest.raises(ExportError, match=message):
        next(built)
    assert content(bundle) == before


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no groups that get signals")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_to_all_of_a_terminal_stops_all(bundle: Path, number: signal.Signals, status: int) -> None:
    """As Ctrl-C, which the terminal sends to each process of the command."""
    before = content(bundle)
    command = [*LATENTRT, "build", str(bundle), "--backend", RTX, "--graph", "denoise"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        (child,) = wait_for(lambda: of_kind(psutil.Process(process.pid)))
        os.killpg(process.pid, number)
        _, error = process.communicate(timeout=10)
    assert (process.returncode, error) == (status, "latentrt: interrupted; no incomplete files were left\n")
    assert not child.is_running()
    assert content(bundle) == before


# --- builds on a simulated GPU, in a process of their own -------------------------------------------------------------


@pytest.mark.slow
def test_the_fastest_of_several_and_kernel_timings(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_child = lambda job, progress: call_in_child(child_builds.build_simulated, job, progress)  # noqa: E731
    with machine() as gpu:
        monkeypatch.setattr("latentrt.export.build.trt_engines.build_in_child", in_child)
        monkeypatch.setattr(TrtBuilder, "engine_from_onnx", None)  # nothing is built in this process
        (plain,) = gpu.build(bundle, "tensorrt", graphs=["blend"])
        options = BuildOptions(best_of=3, timing_iterations=2)
        (best,) = gpu.build(bundle, "tensorrt", options=options, graphs=["blend"])
    assert (plain.attempts, best.attempts) == ((), (3.0, 1.0, 2.0))
    assert b'"milliseconds": 1.0' in (bundle / best.record.file).read_bytes()
    (cache,) = (bundle.parent / "cache" / "latentrt" / "timing").iterdir()
    assert cache.read_bytes() == b"timed "
