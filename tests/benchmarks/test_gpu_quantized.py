"""The part `quantized` of the GPU check on the simulated GPU, and planted faults."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.exports import Exported
from support.simulator import machine
from support.simulator.tensorrt import ICudaEngine

from benchmarks.gpu import full_size, quantized
from benchmarks.gpu.places import Place
from benchmarks.gpu.report import Report
from latentrt.runtime.bundle import Bundle, EngineList

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _quick_quantization(monkeypatch: pytest.MonkeyPatch) -> None:
    """No ranking of layers; and no OpenVINO, which is forgotten with the simulated libraries, but imports only once."""
    monkeypatch.setattr("latentrt.export.quantize.quantize.openvino_is_installed", lambda: False)
    monkeypatch.setattr("latentrt.export.quantize.quantize._Quantizer._rank", lambda *_: None)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shared by the tests, so that the embedded model is quantized once."""
    return tmp_path_factory.mktemp("work")


def done(place: Place) -> Report:
    """Run the part with little to draw; return its saved report."""
    report = Report(place.work / "reports" / "quantized.json")
    quantized.run(place, report, quantized.Effort(steps=2, prompts=4, calibration=4, repetitions=1))
    report.finish()
    return Report.read(report.file)


def failed(report: Report) -> list[str]:
    return [f"{check['name']}: {check['text']}" for check in report.checks if not check["passed"]]


def test_both_models_in_both_kinds(exported: Callable[[str], Exported], work: Path) -> None:
    """With a small bundle in place of the full-size one, whose other engines are not built again."""
    place = Place(work, backends=("tensorrt_rtx",))
    shutil.copytree(exported("sd1-fp32").bundle, full_size.bundle_of(place))
    full_size.checkpoint_of(place).symlink_to(exported("sd1-fp32").checkpoint)
    with machine():
        full_size.run(place, Report(work / "full_size.json"), pixels=64, batches=(1,))
        before = {file.name for file in (place.engines("sd15") / "engines").iterdir()}
        report = done(place)
    assert report.passed, failed(report)
    assert len(report.checks) == 2 * 3
    for name in ("shapes", "sd15"):
        assert report.figures[f"tensorrt_rtx, {name} unquantized"].keys() == {"denoise_ms_a_call", "vae_decoder_ms"}
        for kind in ("fp8", "int8"):
            figures = report.figures[f"tensorrt_rtx, {name} {kind}"]
            assert 1e-3 < figures["error_of_latents"] < 1
            assert figures["denoise_over_unquantized"] > 0
    needed = set(Bundle.open(full_size.bundle_of(place)).manifest.needed_graphs)
    for kind in ("fp8", "int8"):
        engines = EngineList.of_bundle(Bundle.open(work / f"sd15-{kind}"), place.engines(f"sd15-{kind}"))
        assert {record.graph for record in engines.engines} == needed
        assert {record.graph for record in engines.engines if Path(record.file).name not in before} == {"denoise"}
    shutil.rmtree(full_size.bundle_of(place))


def test_a_gpu_without_fp8_is_no_failure(work: Path) -> None:
    with machine(capability="8.6"):
        report = done(Place(work, backends=("tensorrt",)))
    assert report.passed, failed(report)
    assert {check["name"].split(":")[0] for check in report.checks} == {"tensorrt, shapes int8"}
    (note, missing) = report.notes
    assert "is fp8, which GPUs have from compute capability 8.9 on: this GPU has 8.6" in note
    assert missing.endswith("does not exist: run the part full_size first")


def test_kernels_that_compute_something_else_are_found(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compute = ICudaEngine._compute
    wrong = lambda self, inputs: [a * np.float32(1.3) if a.ndim == 5 else a for a in compute(self, inputs)]  # noqa: E731
    monkeypatch.setattr(ICudaEngine, "_compute", wrong)
    monkeypatch.setattr(quantized, "KINDS", ("int8",))
    with machine():
        (found,) = failed(done(Place(work, backends=("tensorrt_rtx",))))
    assert found.startswith("tensorrt_rtx, shapes int8: latents: ")


def test_a_library_that_does_not_build_is_left_out(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Place, "build", lambda *_, **__: 1 / 0)
    with machine():
        report = done(Place(work, backends=("tensorrt",)))
    assert report.left_out == ["tensorrt"]
    assert report.verdict == "left out"
