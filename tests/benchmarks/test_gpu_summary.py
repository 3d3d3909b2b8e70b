"""Reports of the GPU check, and how those of a part are joined."""

from pathlib import Path
from typing import Any

from benchmarks.gpu.parts import Job
from benchmarks.gpu.report import Report
from benchmarks.gpu.runner import Outcome
from benchmarks.gpu.summary import joined, keep, kept, passed, write_summary


def report_of(tmp_path: Path, name: str, **facts: Any) -> Report:
    report = Report(tmp_path / f"{name}.json", finished=True, **facts)
    report.save()
    return report


def test_jobs_of_a_part_are_joined(tmp_path: Path) -> None:
    """Nothing is lost: figures of the same name are told apart, and the worst verdict counts."""
    check = {"name": "draws", "passed": True, "text": "yes"}
    first = report_of(tmp_path, "a", checks=[check], figures={"diffusers": 1.0}, notes=["no clocks"])
    second = report_of(tmp_path, "b", checks=[check], figures={"diffusers": 2.0, "more": 3}, notes=["no clocks"])
    outcomes = [
        Outcome(Job("latency", "onnxruntime"), "passed", 3.0, 0, report=first),
        Outcome(Job("latency", "tensorrt"), "left out", last_line="tensorrt does not load: no such library"),
        Outcome(Job("latency", "tensorrt_rtx"), "passed", 4.0, 0, report=second),
    ]
    (part,) = joined(outcomes)
    assert (part["part"], part["verdict"], part["seconds"]) == ("latency", "passed", 7.0)
    assert part["report"]["figures"] == {"diffusers": 1.0, "tensorrt_rtx: diffusers": 2.0, "more": 3}
    assert part["report"]["checks"] == [check, check]
    assert part["report"]["notes"] == ["no clocks"]
    assert passed(outcomes)
    text = write_summary(outcomes, tmp_path / "out")
    assert "(onnxruntime passed, tensorrt left out, tensorrt_rtx passed)" in text
    assert "tensorrt: left out: tensorrt does not load: no such library" in text
    outcomes.append(Outcome(Job("latency"), "no time left"))
    assert next(joined(outcomes))["verdict"] == "no time left"
    assert not passed(outcomes)
    assert not passed(outcomes[1:2])  # no backend at all


def test_outcomes_are_kept_for_the_next_call(tmp_path: Path) -> None:
    report = report_of(tmp_path, "a", figures={"rate": 1.5, "nan": float("nan")})
    outcomes = [
        Outcome(Job("ceilings"), "passed", 2.5, 0, "end", report),
        Outcome(Job("waits", "tensorrt"), "left out"),
    ]
    keep(tmp_path / "kept.json", outcomes)
    (first, second), (again, _) = kept(tmp_path / "kept.json"), outcomes
    assert (first.job, first.seconds, first.status, first.last_line) == (again.job, 2.5, 0, "end")
    assert first.report is not None
    assert first.report.figures == {"rate": 1.5, "nan": "nan"}
    assert second == outcomes[1]
    assert kept(tmp_path / "missing.json") == []


def test_a_report_is_on_disk_at_once_and_knows_nan(tmp_path: Path) -> None:
    report = Report(tmp_path / "deep" / "report.json")
    report.at_most("error", float("nan"), 1.0)
    report.figure("inf", [float("inf"), 1 / 3])
    read = Report.read(report.file)
    assert [f"{check['name']}: {check['text']}" for check in read.checks] == ["error: nan, at most 1e+00"]
    assert read.verdict == "failed"
    assert read.figures["inf"] == ["inf", 0.333333]
    assert not read.finished
