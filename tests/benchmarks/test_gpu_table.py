"""The README's table of a GPU, from a made-up summary of the GPU check."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu.parts import Job
from benchmarks.gpu.report import Report
from benchmarks.gpu.runner import Outcome
from benchmarks.gpu.summary import write_summary
from benchmarks.reports.readme_table import readme_block, with_block
from benchmarks.reports.tables import load

CARD = {"name": "NVIDIA H100 80GB HBM3", "driver_version": "580.1"}


def case(p50: float, p90: float, floor: float, denoise: float | None = None) -> dict[str, Any]:
    figures: dict[str, Any] = {"p50_ms": p50, "p90_ms": p90, "p50_over_floor": floor}
    return figures | ({"stages_ms": {"denoise": denoise}} if denoise is not None else {})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Results of ONNX Runtime, and of TensorRT for RTX with diffusers measured again beside it."""

    def outcome(part: str, backend: str, figures: dict[str, Any]) -> Outcome:
        report = Report(tmp_path / "r.json", figures=figures, finished=True, when="2026-12-01 10:00:00")
        return Outcome(Job(part, backend), "passed", 1.0, 0, report=report)

    folder = tmp_path / "h100"
    of_first = {
        "floor, batch 1, 20 steps": {"ms": 50.0, "graphs": {}},
        "onnxruntime, batch 1, 20 steps": case(260.0, 266.4, 5.2, 240.0),
        "onnxruntime, batch 4, 20 steps": case(800.0, 812.0, 4.1, 720.0),
        "diffusers eager, batch 1, 20 steps": case(812.4, 830.0, 16.2),
    }
    of_second = {
        "tensorrt_rtx, batch 1, 20 steps": case(151.5, 152.0, 3.03, 140.0),
        "diffusers eager, batch 1, 20 steps": case(815.0, 831.0, 16.3),
    }
    outcomes = [outcome("device", "", {"nvidia_smi": [CARD]}), outcome("latency", "onnxruntime", of_first)]
    write_summary([*outcomes, outcome("latency", "tensorrt_rtx", of_second)], folder)
    return folder


def test_a_row_for_each_case(folder: Path) -> None:
    block = readme_block(folder)
    lines = block.splitlines()
    assert (lines[0], lines[-1]) == ("<!-- figures of h100 -->", "<!-- end of figures -->")
    assert "on NVIDIA H100 80GB HBM3 (driver 580.1), 2026-12-01: median" in block
    assert "(benchmarks/results/h100/summary.txt)" in block
    rows = [line for line in lines if line.startswith("|")][2:]
    assert rows == [
        "| latentrt onnxruntime | 260 | 266 | 12 | 5.2 | 200 | 203 | 36 | 4.1 |",
        "| latentrt tensorrt_rtx | 152 | 152 | 7 | 3.03 | - | - | - | - |",
        "| diffusers eager | 812 | 830 | - | 16.2 | - | - | - | - |",
    ]
    readme = "before\n<!-- figures of h100 -->\nold\n<!-- end of figures -->\nafter\n"
    assert with_block(readme, block, "h100") == f"before\n{block}\nafter\n"


def test_a_summary_without_latencies_is_told(tmp_path: Path) -> None:
    write_summary([Outcome(Job("device"), "passed")], tmp_path / "h200")
    with pytest.raises(SystemExit, match=r"has no latencies: run `benchmarks/gpu_check.sh full_size latency --out"):
        readme_block(tmp_path / "h200")


def test_the_summary_is_no_run_of_a_benchmark(folder: Path) -> None:
    (folder / "latency-shapes.json").write_text('{"benchmark": "latency"}')
    assert list(load(folder)) == ["latency-shapes"]
