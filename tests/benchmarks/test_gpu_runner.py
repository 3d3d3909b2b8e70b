"""How the GPU check runs its jobs: order, budget, ends of every kind, and the command."""

import importlib
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.exports import ROOT

from benchmarks.gpu import __main__ as gpu_main
from benchmarks.gpu import parts, runner, wheels
from benchmarks.gpu.parts import HALF_HOUR, PARTS, Job, Part, jobs_of
from benchmarks.gpu.places import BACKENDS, Place
from benchmarks.gpu.report import Report
from benchmarks.gpu.runner import GRACE, VERDICTS, Outcome, run_job, run_jobs
from benchmarks.gpu.summary import write_summary

HERE = {"PYTHONPATH": f"{ROOT}/typings:{ROOT}", "PATH": "/usr/bin:/bin"}


# --- which jobs, and in which order -----------------------------------------------------------------------------------


def test_libraries_take_turns_and_never_share_a_process() -> None:
    jobs = list(jobs_of(parts.QUICK))
    assert [job.name for job in jobs[:5]] == [
        *("device", "ceilings", "backends.onnxruntime", "states.onnxruntime", "pictures.onnxruntime"),
    ]
    turns = [key for key, _ in itertools.groupby(job.backend for job in jobs if job.backend)]
    assert turns == list(BACKENDS) == ["onnxruntime", "tensorrt", "tensorrt_rtx"]
    assert len(set(jobs)) == len(jobs)
    assert [job.part for job in jobs if job.backend == "tensorrt"] == [
        *("backends", "states", "pictures", "norms", "waits", "loras", "ideas"),
    ]
    assert not {job.part for job in jobs} & {"full_size", "ort_options", "latency"}
    assert list(jobs_of(["waits", "device", "older"], ["tensorrt_rtx"])) == [
        *(Job("device"), Job("waits", "tensorrt_rtx"), Job("older", "tensorrt_rtx")),
    ]


def test_the_calls_fit_half_an_hour_and_need_nothing_of_a_later_one() -> None:
    assert all(call.seconds < 600 for call in HALF_HOUR)
    assert sum(call.seconds for call in HALF_HOUR) <= 1800 - 300  # starts and transfers
    for call in HALF_HOUR:
        assert sum(PARTS[job.part].needs for job in call.jobs) + GRACE <= call.seconds
    jobs = [job for call in HALF_HOUR for job in call.jobs]
    order = [
        "device",
        "ceilings",
        "backends",
        "states",
        "pictures",
        "norms",
        "waits",
        "full_size",
        "ort_options",
        "latency",
    ]
    assert [job.part for job in jobs[: len(order)]] == order
    assert {job.backend for job in jobs[: len(order)]} == {"", "onnxruntime"}
    assert len(set(jobs)) == len(jobs)
    for backend in BACKENDS:
        ran = [job.part for job in jobs if job.backend == backend]
        assert ran[0] == "backends"
        assert ran.index("full_size") < ran.index("latency")


# --- ends of every kind -----------------------------------------------------------------------------------------------

BEGIN = "import os, signal, sys, time; from pathlib import Path; from benchmarks.gpu.report import Report\n"
BEGIN += "report = Report(Path(sys.argv[1])); report.check('begun', True, 'yes')\n"
ENDINGS = {
    "good": "report.finish()",
    "bad": "report.check('sum', False, '3 is not 4'); report.finish(); sys.exit(1)",
    "crash": "print('about to'); os.kill(os.getpid(), signal.SIGSEGV)",
    "error": "raise KeyError('colour')",
    "exit": "report.finish(); print('leaving'); os.abort()",
    "hang": "signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)",
    "absent": "report.checks.clear(); report.leave_out('tensorrt', 'does not load: no such library'); report.finish()",
    "late": "report.finish()",
}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Outcome]]:
    """Runs the parts of `ENDINGS` and returns their outcomes, "running" included."""
    table = {name: Part(0, 2 if name == "hang" else 30) for name in ENDINGS} | {"late": Part(1000, 1000)}
    monkeypatch.setattr(runner, "PARTS", table | {"backends": Part(0, 30, BACKENDS, daring=True)})
    monkeypatch.setattr(runner, "GRACE", 0.5)
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("PYTHONPATH", HERE["PYTHONPATH"])

    def run(jobs: list[Job], endings: dict[str, str] = ENDINGS, **options: Any) -> list[Outcome]:
        def command(job: Job) -> list[str]:
            return [sys.executable, "-c", BEGIN + endings[job.part], str(tmp_path / f"{job.name}.json")]

        given = {"until": time.monotonic() + 100, "left_out": {}, **options}
        return list(run_jobs(jobs, command, reports=tmp_path, **given))

    return run


def test_jobs_end_in_every_way(run: Callable[..., list[Outcome]], tmp_path: Path) -> None:
    outcomes = run([Job(name) for name in ENDINGS])
    assert [o.job.part for o in outcomes if o.verdict == "running"] == [*ENDINGS][:-1]
    ended = [outcome for outcome in outcomes if outcome.verdict != "running"]
    assert {outcome.job.part: outcome.verdict for outcome in ended} == {
        "good": "passed",
        "bad": "failed",
        "crash": "crashed",
        "error": "crashed",
        "exit": "passed",
        "hang": "ran too long",
        "absent": "left out",
        "late": "no time left",
    }
    assert {outcome.verdict for outcome in outcomes} <= {*VERDICTS}
    text = write_summary(ended, tmp_path / "out")
    assert "ended with status 1; last line of its log: KeyError: 'colour'" in text
    assert "ended with status -6; last line of its log: leaving" in text
    assert "FAILED  sum: 3 is not 4" in text
    assert "ended with status -11; last line of its log: about to" in text
    found = json.loads((tmp_path / "out" / "summary.json").read_text())["parts"]
    assert [part["part"] for part in found] == [*ENDINGS]
    assert found[2]["report"]["checks"] == [{"name": "begun", "passed": True, "text": "yes"}]
    assert not found[2]["report"]["finished"]
    assert (tmp_path / "out" / "summary.txt").read_text() == text


def test_a_backend_that_does_not_run_is_tried_by_daring_parts_only(run: Callable[..., list[Outcome]]) -> None:
    """Until the part `backends` finds that it runs again. Whether it crashed or is not there, later parts say why."""
    jobs = [Job("backends", "tensorrt"), Job("good", "tensorrt"), Job("good", "onnxruntime")]
    left_out: dict[str, str] = {"tensorrt_rtx": "kept"}

    def verdicts(ending: str) -> list[str]:
        endings = ENDINGS | {"backends": ENDINGS[ending]}
        return [o.verdict for o in run(jobs, endings, left_out=left_out) if o.verdict != "running"]

    assert verdicts("crash") == ["crashed", "left out", "passed"]
    assert left_out == {"tensorrt_rtx": "kept", "tensorrt": "the part backends crashed with it"}
    assert verdicts("absent") == ["left out", "left out", "passed"]
    assert left_out["tensorrt"] == "tensorrt does not load: no such library"
    assert verdicts("bad") == ["failed", "passed", "passed"]  # wrong pictures are worth a closer look
    assert left_out == {"tensorrt_rtx": "kept"}


def test_what_does_not_fit_is_not_started(run: Callable[..., list[Outcome]], monkeypatch: pytest.MonkeyPatch) -> None:
    """A short part behind one that does not fit still runs, and one that takes too long ends within the budget."""
    monkeypatch.setattr(runner, "PARTS", {"late": Part(50, 60), "hang": Part(0, 60), "good": Part(0.1, 60)})
    outcomes = run([Job("late"), Job("good"), Job("hang"), Job("good")], until=time.monotonic() + 3)
    assert sum(outcome.seconds for outcome in outcomes) < 3.5
    assert [o.verdict for o in outcomes if o.verdict != "running"] == [
        *("no time left", "passed", "ran too long", "no time left"),
    ]


def test_an_old_report_is_not_taken_for_a_new_one(tmp_path: Path) -> None:
    old = Report(tmp_path / "device.json")
    old.finish()
    assert run_job(Job("device"), ["false"], 5.0, tmp_path).verdict == "crashed"


# --- the command ------------------------------------------------------------------------------------------------------


def finished(file: Path) -> Report:
    report = Report(file)
    report.finish()
    return report


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., SimpleNamespace]:
    """Calls the command with faked jobs, which all pass; returns what ran, with commands and the budget."""
    monkeypatch.setattr(gpu_main.signal, "signal", lambda *_: None)
    found = SimpleNamespace(commands={}, until=0.0, left_out={})

    def run_jobs(jobs: Any, command: Any, *, until: float, reports: Path, left_out: dict[str, str]) -> Any:
        found.until, found.left_out = until, dict(left_out)
        for job in jobs:
            found.commands[job.name] = command(job)
            yield Outcome(job, "passed", 1.0, 0, report=finished(reports / f"{job.name}.json"))

    monkeypatch.setattr(gpu_main, "run_jobs", run_jobs)

    def call(*words: str) -> SimpleNamespace:
        found.commands = {}
        folders = ["--out", str(tmp_path / "out"), "--work", str(tmp_path / "work")]
        monkeypatch.setattr(sys, "argv", ["gpu_check", *words, *folders])
        found.begin = time.monotonic()
        found.status = gpu_main.main()
        found.parts = json.loads((tmp_path / "out" / "summary.json").read_text())["parts"]
        return found

    return call


def test_without_names_the_quick_parts_run(called: Callable[..., SimpleNamespace]) -> None:
    found = called()
    assert list(found.commands) == [job.name for job in jobs_of(parts.QUICK)]
    assert found.status == 0
    assert found.until - found.begin == pytest.approx(570, abs=0.5)
    assert called("--seconds", "90", "--spent", "31").until - found.begin == pytest.approx(59, abs=0.5)


def test_diffusers_is_compiled_once(called: Callable[..., SimpleNamespace]) -> None:
    commands = called("latency", "--batch", "1", "--batch", "4").commands
    assert ["--no-compile" in words for words in commands.values()] == [False, True, True]
    assert all(words.count("--batch") == 2 for words in commands.values())
    commands = called("latency", "--no-compile", "--backend", "onnxruntime").commands
    assert [words[-1] for words in commands.values()] == ["--no-compile"]


def test_the_calls_of_the_half_hour_have_one_summary(called: Callable[..., SimpleNamespace]) -> None:
    first = called("--half-hour", "1").parts
    assert [part["part"] for part in first] == [job.part for job in HALF_HOUR[0].jobs]
    found = called("--half-hour", "2")
    assert found.until - found.begin == pytest.approx(HALF_HOUR[1].seconds, abs=0.5)
    of_latency = found.commands["latency.onnxruntime"]
    assert of_latency[-3:] == ["--batch", "1", "--no-compile"]
    states = next(part for part in found.parts if part["part"] == "states")
    assert [job["backend"] for job in states["jobs"]] == ["onnxruntime", "tensorrt"]
    assert {part["part"] for part in called("--half-hour", "1").parts} == {part["part"] for part in first}


def test_a_call_of_the_half_hour_has_parts_of_its_own(
    called: Callable[..., SimpleNamespace], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        called("waits", "--half-hour", "2")
    assert "--half-hour 2 has parts of its own: leave out waits" in capsys.readouterr().err


def test_a_list_runs_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["gpu_check", "--list", "--half-hour", "3"])
    assert gpu_main.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:-1]] == [job.name for job in HALF_HOUR[2].jobs]
    assert lines[-1] == "all within 360 s, installation included"
    assert not list(tmp_path.iterdir())


def test_a_part_gets_its_backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Place] = []
    module = importlib.import_module("benchmarks.gpu.waits")
    monkeypatch.setattr(module, "run", lambda place, _: seen.append(place))
    words = ["waits", "--here", str(os.getppid()), "--backend", "tensorrt", "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["gpu_check", *words, "--work", str(tmp_path), "--graphs", "elsewhere"])
    monkeypatch.setattr(gpu_main, "end_with_parent", lambda _: None)
    assert gpu_main.main() == 0
    assert (seen[0].backends, seen[0].graphs) == (["tensorrt"], Path("elsewhere"))
    assert Report.read(tmp_path / "out" / "reports" / "waits.tensorrt.json").finished


@pytest.mark.slow
def test_the_script_runs_parts_and_says_what_failed(
    tmp_path: Path, make_wheel: Callable[[Path, str, str], Path]
) -> None:
    """Without a GPU, `device` fails, and ONNX Runtime on the CPU passes. A wheel is installed first."""
    script = ROOT / "benchmarks" / "gpu_check.sh"
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
    options = ["--out", tmp_path / "out", "--work", tmp_path / "work", "--device", "cpu", "--backend", "onnxruntime"]
    wheels.prepare(tmp_path / "wheels", [make_wheel(tmp_path / "made", "polygraphy", "carried")], 10**6)
    environment = {"PYTHON": sys.executable, "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    environment |= {"GPU_WHEELS": str(tmp_path / "wheels"), "GPU_SITE": str(tmp_path / "site")}

    def run(*words: object) -> "subprocess.CompletedProcess[str]":
        command = [str(word) for word in (script, *words)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    child = run("device", "backends", "waits", *options)
    assert child.returncode == 1, child.stderr
    found = {p["part"]: p for p in json.loads((tmp_path / "out" / "summary.json").read_text())["parts"]}
    assert found["backends"]["verdict"] == found["waits"]["verdict"] == "passed", child.stdout
    assert found["device"]["verdict"] == "failed"
    assert found["device"]["report"]["figures"]["modules"]["polygraphy"] == "no version"
    assert "FAILED  a GPU is visible" in child.stdout
    assert (tmp_path / "out" / "reports" / "backends.onnxruntime.log").is_file()
    wrong = run("colours")
    assert wrong.returncode == 2
    assert "unknown part 'colours': choose from device, ceilings" in wrong.stderr
