"""The GPU check reports what its engines fuse."""

from pathlib import Path

import pytest
from support.exports import SHAPES
from support.simulator import machine

from benchmarks.gpu.fusion import report_fusion
from benchmarks.gpu.report import Report


def test_engines_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    report, engines = Report(tmp_path / "report.json"), tmp_path / "engines"
    report_fusion(report, SHAPES.bundle, engines)
    assert (report.figures, report.notes) == ({}, [])
    with machine() as gpu:
        gpu.build(SHAPES.bundle, "tensorrt", {"batch": ["3"]}, graphs=["denoise"], engines=engines)
    report_fusion(report, SHAPES.bundle, engines)
    ((name, text),) = report.figures.items()
    assert name == "tensorrt engine of denoise B=3 G=2 h=16 w=16 S=77"
    # The simulated library has a kernel for each node.
    assert "attention fused 0 of 14" in text
    assert "GroupNorm+SiLU in one kernel 0 of 23" in text
    (next(engines.glob("engines/*.layers.json"))).write_text("{}")
    report_fusion(report, SHAPES.bundle, engines)
    assert "Build the engine again" in report.notes[0]
