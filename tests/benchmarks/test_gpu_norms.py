"""The part `norms` of the GPU check: one group norm in float16 on the simulated GPU."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.simulator import machine

from benchmarks.gpu import norms
from benchmarks.gpu.carried import NORMS
from benchmarks.gpu.norms import CASES, Case
from benchmarks.gpu.places import Place
from benchmarks.gpu.report import Report
from latentrt.runtime import Pipeline

FEW = (Case(320, 12), Case(64, 30, 1e-6))


def found(place: Place) -> Report:
    report = Report(place.work / "report.json")
    with machine(onnxruntime={}):
        norms.run(place, report)
    report.finish()
    return report


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """With a graph of few small cases that was carried."""
    monkeypatch.setattr(norms, "CASES", FEW)
    place = Place(tmp_path / "work", graphs=tmp_path / "graphs", backends=("onnxruntime", "tensorrt_rtx"))
    place.graphs.mkdir()
    (place.graphs / NORMS).write_bytes(norms.norms_graph())
    return place


def test_every_backend_and_the_own_kernel_of_onnxruntime_are_checked(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(norms, "norms_graph", lambda: 1 / 0)  # it was carried
    report = found(place)
    assert report.passed, report.checks
    labels = ("onnxruntime", "tensorrt_rtx", "onnxruntime, its own GroupNorm")
    assert {check["name"].rpartition(":")[0] for check in report.checks} == {*labels}
    assert len(report.checks) == 3 * len(FEW)
    assert report.checks[0]["name"] == "onnxruntime: 320 × 12², 1,440 values a group"


def test_a_wrong_norm_is_found(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that rounds its sums: half a percent too large."""
    run = Pipeline.run

    def wrong(self: Pipeline, graph: str, *rest: Any) -> dict[str, Any]:
        return {n: v * np.float32(1.005 if n == "norm_64_30" else 1) for n, v in run(self, graph, *rest).items()}

    monkeypatch.setattr(Pipeline, "run", wrong)
    failed = [check["name"] for check in found(place).checks if not check["passed"]]
    assert len(failed) == 3
    assert all("64 × 30²" in name for name in failed)


def test_the_reference_is_that_of_pytorch() -> None:
    case = Case(96, 7, 1e-3)
    x = torch.from_numpy(norms.values(case).astype(np.float64))
    scale, bias = (torch.from_numpy(part.astype(np.float64)) for part in norms.scales(case).values())
    wanted = torch.nn.functional.silu(torch.nn.functional.group_norm(x, 32, scale, bias, 1e-3))
    np.testing.assert_allclose(norms.exact_norm(case, norms.values(case)), wanted.numpy(), rtol=1e-12, atol=1e-12)
    assert np.array_equal(norms.values(case), norms.values(case).astype(np.float16))


def test_the_cases_have_the_groups_of_both_unets_and_of_the_decoder() -> None:
    assert len({case.name for case in CASES}) == len(CASES)
    assert {case.group for case in CASES} >= {10 * 64**2, 40 * 8**2, 10 * 128**2, 80 * 32**2, 4 * 512**2}
