"""Every part of the GPU check on the simulated GPU or the CPU, and planted faults."""

import importlib
import shutil
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from support.exports import ROOT, Exported
from support.native import built
from support.simulator import Machine, machine
from support.simulator import ort as simulated

from benchmarks.gpu import full_size, latency, native, ort_options, pictures, states, waits
from benchmarks.gpu.parts import PARTS, Job
from benchmarks.gpu.places import Place
from benchmarks.gpu.report import Report
from benchmarks.gpu.runner import Outcome
from benchmarks.gpu.summary import write_summary
from benchmarks.quality import cuda_noise
from latentrt.export import cli as export_cli
from latentrt.export.build.ort_graphs import chosen_rewrites
from latentrt.runtime import BackendError, Pipeline
from latentrt.runtime.backends.trt.loaded_engine import LoadedEngine
from latentrt.runtime.cli.main import _parser
from latentrt.runtime.gpu.launch import Launch
from latentrt.runtime.loop.resident import Passed

RTX = ("tensorrt_rtx",)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shared by the tests, so that engines are built once."""
    return tmp_path_factory.mktemp("work")


@pytest.fixture
def gpu() -> Iterator[Machine]:
    with machine() as simulated:
        yield simulated


def done(part: str, place: Place, **options: Any) -> Report:
    """Run a part in this process; return its saved report."""
    report = Report(place.work / "reports" / f"{part}.json")
    importlib.import_module(f"benchmarks.gpu.{part}").run(place, report, **options)
    report.finish()
    return Report.read(report.file)


def failed(report: Report) -> list[str]:
    return [f"{check['name']}: {check['text']}" for check in report.checks if not check["passed"]]


# --- parts on the simulated GPU ---------------------------------------------------------------------------------------


def test_every_part_is_here() -> None:
    assert {path.stem for path in (ROOT / "benchmarks" / "gpu").glob("*.py")} == {
        *PARTS,
        *("__init__", "__main__", "parts", "places", "report", "runner", "summary"),
        *("carried", "full_size_graphs", "fusion", "light", "slim", "wheels"),
    }


@pytest.mark.usefixtures("gpu")
def test_device(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = "NVIDIA H100, 580.1, 81559 MiB, 4 MiB, 0 %, 31, 70.1 W, 700 W, 345 MHz, 1980 MHz, 2619 MHz, Default\n"
    smi = tmp_path / "nvidia-smi"
    smi.write_text(f"#!/bin/sh\nprintf '%s' '{answer}'\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    report = done("device", Place(work))
    assert report.passed
    assert report.figures["nvidia_smi"][0]["clocks.max.sm"] == "1980 MHz"
    assert report.figures["modules"]["tensorrt_rtx"] == "1.7.1.116"


def test_no_gpu_is_a_failed_check(work: Path) -> None:
    with machine(devices=0):
        assert failed(done("device", Place(work))) == ["a GPU is visible: none"]
        report = done("backends", Place(work))
    assert report.verdict == "left out"
    assert report.left_out == ["onnxruntime", "tensorrt", "tensorrt_rtx"]
    assert {note.split(" ")[0] for note in report.notes} == {*report.left_out}


@pytest.mark.slow
def test_a_library_that_breaks_does_not_hide_the_next(
    work: Path, monkeypatch: pytest.MonkeyPatch, gpu: Machine
) -> None:
    monkeypatch.setattr(gpu.libraries["tensorrt"], "Runtime", lambda _: 1 / 0)
    report = done("backends", Place(work))
    assert report.passed
    assert [check["name"] for check in report.checks] == ["tensorrt_rtx"]
    assert "tensorrt does not run: division by zero" in report.notes


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(
    ("part", "options"),
    [
        ("backends", {}),
        ("pictures", {"steps": 2, "precisions": ["fp32"]}),
        ("states", {"steps": 3}),
        ("loras", {"steps": 1}),
        ("waits", {"steps": 5}),
        ("ideas", {"calls": 2, "repetitions": 1}),
        ("older", {}),
    ],
)
def test_a_part_passes(work: Path, part: str, options: dict[str, Any]) -> None:
    backends = ("onnxruntime", "tensorrt", "tensorrt_rtx") if part == "backends" else ("onnxruntime", *RTX)
    report = done(part, Place(work, backends=backends), **options)
    assert report.passed, failed(report)
    if part == "older":
        assert report.figures["drawn on"] == "tensorrt_rtx on Simulated GPU"
        assert report.figures["largest difference"] < 1e-5
    else:
        assert report.checks
        assert all("tensorrt" in check["name"] for check in report.checks)
        assert any(note.startswith("onnxruntime does not load") for note in report.notes)


@pytest.mark.slow
def test_the_library_in_cpp(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU, as no simulator stands behind ONNX Runtime's C functions; without the program it is left out."""
    built()
    report = done("native", Place(work, device="cpu", backends=("onnxruntime",)), steps=2)
    assert report.passed, failed(report)
    assert len(report.checks) == 5
    monkeypatch.setattr(native, "PROGRAM", work / "nowhere")
    report = done("native", Place(work, device="cpu", backends=("onnxruntime",)), steps=2)
    assert (report.verdict, report.left_out) == ("left out", ["onnxruntime"])


@pytest.mark.usefixtures("gpu")
def test_a_gpu_that_the_library_refuses_is_a_finding(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise BackendError("this GPU is not on the list")

    monkeypatch.setattr(LoadedEngine, "__init__", refuse)
    report = done("older", Place(work))
    assert report.passed
    assert report.figures["does not run"] == "BackendError: this GPU is not on the list"


def test_the_part_older_runs_what_the_library_refuses(
    gpu: Machine, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU that is not listed: only running the engine shows whether the refusal is right."""
    monkeypatch.setattr(gpu.libraries["tensorrt_rtx"].Runtime, "invalid", 2)
    report = done("older", Place(work))
    assert "says that it does not support this GPU" in report.figures["the library refuses"]
    assert report.figures["drawn on"] == "tensorrt_rtx on Simulated GPU"
    report = done("states", Place(work, backends=RTX), steps=1)
    assert (report.verdict, report.left_out) == ("left out", ["tensorrt_rtx"])
    assert any("does not support this GPU" in note for note in report.notes)


@pytest.fixture
def ort(exported: Callable[[str], Exported], tmp_path: Path) -> Place:
    """Only ONNX Runtime, with a small bundle in place of the full-size one."""
    place = Place(tmp_path, backends=("onnxruntime",))
    shutil.copytree(exported("sd1-fp32").bundle, full_size.bundle_of(place))
    return place


@pytest.mark.slow
def test_ort_options(ort: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each kind of variant; the other ones differ in names only."""
    some = ["exported", "built", "built, channels last", "packed attention", "only bias_add"]
    monkeypatch.setattr(ort_options, "VARIANTS", {title: ort_options.VARIANTS[title] for title in some})
    monkeypatch.setattr(ort_options, "OF_SHAPES", ("exported", "packed attention"))
    with machine(onnxruntime={}):
        report = done("ort_options", ort, steps=1, repetitions=1)
    assert report.passed, failed(report)
    assert len(report.checks) == (3 + 3) + (1 + 2 + 2)
    assert report.notes == ["sd15, only bias_add: this model has nothing to replace"]  # which is a small one here
    keys = {"denoise_ms_a_call", "vae_decoder_ms"}
    assert report.figures["sd15, exported"].keys() == keys
    for title in ("shapes, packed attention", *(f"sd15, {title}" for title in some[1:4])):
        assert report.figures[title].keys() == keys | {f"{key}_of_exported" for key in keys}


def test_variants_of_ort_options() -> None:
    """Names of rewrites that exist, each default alone, too; the most telling first."""
    variants = ort_options.VARIANTS
    assert list(variants)[:3] == ["exported", "built", "built, channels last"]
    assert set(ort_options.OF_SHAPES) <= variants.keys()
    for variant in variants.values():
        if variant.rewrites is not None:
            assert chosen_rewrites(["cuda"], variant.rewrites)["cuda"]
    alone = {variant.rewrites for variant in variants.values() if len(variant.rewrites or ()) == 1}
    assert alone == {(name,) for name in chosen_rewrites(["cuda"])["cuda"] if name != "attention_casts"}


@pytest.mark.slow
def test_ort_options_stop_in_time(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a version does not know is a note, and so is a variant for which no time is left."""
    refused = ort_options.Variant(None, {"user_compute_stream": "none"})
    monkeypatch.setattr(ort_options, "VARIANTS", {"exported": ort_options.Variant(None), "refused": refused})
    monkeypatch.setattr(ort_options, "OF_SHAPES", ("exported", "refused"))
    place = Place(work / "late", backends=("onnxruntime",))
    with machine(onnxruntime={}):
        for seconds, note in ((60, "shapes, refused does not run: "), (-1, "shapes, refused: no time left")):
            report = done("ort_options", place, steps=1, repetitions=1, seconds=seconds)
            assert report.passed, failed(report)
            assert report.notes[0].startswith(note)


# --- planted faults are found -----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.usefixtures("gpu")
def test_fp16_pictures(work: Path, exported: Callable[[str], Exported]) -> None:
    """The precision that exports have by default."""
    folder = work / "bundles" / "shapes-fp16"
    folder.parent.mkdir(parents=True, exist_ok=True)
    if not folder.exists():
        shutil.copytree(exported("shapes-fp16").bundle, folder)
    report = done("pictures", Place(work, backends=RTX), steps=2, precisions=["fp16"])
    assert report.passed, failed(report)
    assert len(report.checks) == len(pictures.CALLS)
    assert "tensorrt_rtx, fp16: latents of four, euler_a" in report.figures


@pytest.mark.usefixtures("gpu")
def test_a_wrong_register_is_found(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the third call on, register 2 is 0.1 % too large: the error names call and register."""
    fetch = Passed.fetch

    def wrong(self: Passed, register: int) -> Any:
        values = fetch(self, register).result()
        return SimpleNamespace(result=lambda: values * np.float32(1.001 if (self.index, register) == (2, 2) else 1))

    monkeypatch.setattr(Passed, "fetch", wrong)
    monkeypatch.setattr(states, "SCHEDULERS", ("unipc",))
    (found,) = failed(done("states", Place(work, backends=RTX), steps=4))
    assert found.startswith("tensorrt_rtx: unipc, worst in call 2 of 4, register 2: 1.00e-03")


@pytest.mark.slow
@pytest.mark.usefixtures("gpu")
def test_weights_that_do_not_come_back_are_found(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refit = LoadedEngine.refit

    def one_more(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """The next larger number in the first place, which changes hardly anything."""
        result = array.copy()
        result.flat[0] = np.nextafter(result.flat[0], result.dtype.type(np.inf))
        return result

    changed = lambda self, weights: refit(self, {n: one_more(a) for n, a in weights.items()})  # noqa: E731
    monkeypatch.setattr(LoadedEngine, "refit", changed)
    assert failed(done("loras", Place(work, backends=RTX), steps=1)) == [
        "tensorrt_rtx: back to the checkpoint: differs"
    ]


def test_a_wait_inside_of_the_loop_is_found(gpu: Machine, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launch = Launch.__call__

    def waiting(self: Launch) -> None:
        launch(self)
        self._stream.synchronize()

    monkeypatch.setattr(Launch, "__call__", waiting)
    before = vars(gpu.cuda).copy()
    assert failed(done("waits", Place(work, backends=RTX), steps=6)) == [
        "tensorrt_rtx: the host waits: 4 times, at most 0"
    ]
    assert vars(gpu.cuda).keys() == before.keys()


@pytest.mark.slow
def test_wrong_kernels_are_found(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """First kernels with a wrong epsilon, then a library without them."""
    expanded = simulated.with_contrib_ops_expanded
    epsilon = struct.pack("<f", 1e-5), struct.pack("<f", 2e-2)
    monkeypatch.setattr(simulated, "with_contrib_ops_expanded", lambda model: expanded(model.replace(*epsilon)))
    monkeypatch.setattr(ort_options, "OF_SHAPES", ort_options.OF_SHAPES[:2])
    place = Place(work / "kernels", backends=("onnxruntime",))
    with machine(onnxruntime={}):
        report = done("ort_options", place, steps=1, repetitions=1)
    assert report.notes == [f"{full_size.bundle_of(place)} does not exist: run the part full_size first"]
    found = failed(report)
    assert [line.split(":")[0] for line in found] == ["shapes, built"] * len(found)
    assert any("latents" in line for line in found)
    with machine(onnxruntime={"group_norm": False}):
        found = failed(done("ort_options", place, steps=1, repetitions=1))
    assert len(found) == 1
    assert found[0].startswith("shapes, built: its graphs are used: ")
    assert "using the exported one" in found[0]


@pytest.mark.usefixtures("gpu")
def test_calls_of_other_libraries_are_counted(monkeypatch: pytest.MonkeyPatch, work: Path) -> None:
    """With a fake profiler that reports one wait in the loop, and one of its own."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    heard = iter([Counter(cudaDeviceSynchronize=1), Counter(cudaDeviceSynchronize=1, cudaStreamSynchronize=1)])

    def profiler(work: Any) -> Counter[str]:
        work()
        return next(heard)

    monkeypatch.setattr(waits, "heard_by_profiler", profiler)
    assert failed(done("waits", Place(work, backends=RTX), steps=4)) == [
        "tensorrt_rtx: any library waits: 1 times, at most 0"
    ]


def test_which_calls_wait() -> None:
    quiet = Counter(
        cudaMemcpyAsync=3, cudaGraphLaunch=2, cuLaunchKernelEx=4, cudaMallocAsync=1, cuEventSynchronize_ptsz=2
    )
    assert waits.waits_among(quiet) == 0
    loud = Counter(cudaMemcpy_v3020=1, cuStreamSynchronize_ptsz=2, cudaMalloc=4, cudaDeviceSynchronize=8)
    assert waits.waits_among(quiet + loud) == 15


@pytest.mark.filterwarnings("ignore:CUDA is not available")
def test_the_profiler_answers_in_the_expected_form() -> None:
    assert waits.heard_by_profiler(lambda: torch.ones(3) + 1) == Counter()


# --- parts on the CPU -------------------------------------------------------------------------------------------------


def test_noise(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place(work, device="cpu")
    assert done("noise", place, seeds=[9, -3], sizes=[3, 16, 31, 5000]).passed
    monkeypatch.setattr(cuda_noise.TorchGenerator, "randn", lambda _, size, dtype: np.zeros(size, dtype))
    assert len(failed(done("noise", place, seeds=[9], sizes=[40]))) == 2


def test_ceilings(work: Path) -> None:
    report = done("ceilings", Place(work, device="cpu"), side=32, megabytes=1, repetitions=2)
    assert report.passed
    assert report.figures.keys() == {"float16", "float32", "tf32", "bytes"}
    assert all(rate > 1e6 for rate in report.figures.values())


@pytest.fixture(scope="module")
def small(exported: Callable[[str], Exported]) -> Exported:
    """A small random checkpoint and its bundle."""
    return exported("sd2-fp32-opset18")


@pytest.fixture
def full(small: Exported, tmp_path: Path) -> Place:
    """The small checkpoint and bundle in place of the full-size ones."""
    place = Place(tmp_path, device="cpu", backends=("onnxruntime",))
    full_size.checkpoint_of(place).symlink_to(small.checkpoint)
    shutil.copytree(small.bundle, full_size.bundle_of(place))
    return place


@pytest.mark.slow
def test_latencies(full: Place) -> None:
    """latentrt and diffusers draw the same, and the floor is below every case."""
    rates = {"float16": 1e15, "tf32": 1e14, "bytes": 1e13}
    report = done("latency", full, batches=(2,), steps=1, repetitions=1, compiler="eager", ceilings=lambda _: rates)
    assert report.passed, failed(report)
    assert len(report.checks) == 3
    assert all(float(check["text"].split(",")[0]) < 1e-4 for check in report.checks)
    title = "batch 2, 1 steps"
    cases = ("onnxruntime", "diffusers eager", "diffusers channels-last", "diffusers compiled")
    floor = report.figures[f"floor, {title}"]["ms"]
    assert floor == pytest.approx(sum(g["ms"] for g in report.figures[f"floor, {title}"]["graphs"].values()), rel=1e-4)
    text = write_summary([Outcome(Job("latency", "onnxruntime"), "passed", 1.0, report=report)], full.work)
    assert len([line for line in text.splitlines() if line.endswith("times the floor")]) == len(cases)
    for case in cases:
        figures = report.figures[f"{case}, {title}"]
        assert floor < figures["p50_ms"] <= figures["p90_ms"]
        assert figures["p50_over_floor"] == pytest.approx(figures["p50_ms"] / floor, rel=1e-4)
    assert set(report.figures[f"onnxruntime, {title}"]["stages_ms"]) >= {"text_encoder", "denoise", "vae_decoder"}


def test_a_case_that_fails_is_left_out(tmp_path: Path) -> None:
    def fails(**_: Any) -> None:
        raise RuntimeError("no kernel")

    draws = {"good": lambda **_: np.ones(4), "bad": fails}
    report = Report(tmp_path / "report.json")
    latency.compare(report, "batch 1", draws, 2, 1.0)
    assert failed(report) == ["bad, batch 1: RuntimeError: no kernel"]
    assert list(report.figures) == ["good, batch 1"]


def test_a_diffusers_that_does_not_load_is_a_failed_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pipelines before it, and latentrt's own, are measured nevertheless."""

    def pipelines(*_: Any, **__: Any) -> Iterator[tuple[str, Any]]:
        yield "eager", None
        raise RuntimeError("no kernel")

    measured: list[list[str]] = []
    monkeypatch.setattr(latency, "diffusers_pipelines", pipelines)
    monkeypatch.setattr(latency, "compare", lambda _report, _title, draws, *_: measured.append(list(draws)))
    place = Place(tmp_path, device="cpu", backends=("onnxruntime",))
    full_size.checkpoint_of(place).mkdir()
    full_size.bundle_of(place).symlink_to(place.bundle)
    rates = {"float16": 1e15, "tf32": 1e14, "bytes": 1e13}
    report = done("latency", place, batches=(1,), ceilings=lambda _: rates)
    assert failed(report) == ["diffusers: RuntimeError: no kernel"]
    assert measured == [["onnxruntime", "diffusers eager"]]


def test_latency_needs_a_checkpoint(tmp_path: Path) -> None:
    assert "run the part full_size first" in failed(done("latency", Place(tmp_path)))[0]


@pytest.mark.slow
@pytest.mark.usefixtures("gpu")
def test_full_size(full: Place, small: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines are really built, on the simulated GPU; making and exporting the checkpoint are faked."""
    place = Place(full.work, backends=RTX)
    report = done("full_size", place, pixels=32, batches=(1, 2))
    assert report.passed
    assert [name for name in report.figures if name.startswith("seconds")] == ["seconds: tensorrt_rtx engines"]
    with Pipeline.load(full_size.bundle_of(place), backend="tensorrt_rtx", engines=place.engines("sd15")) as pipe:
        assert pipe("a", num_inference_steps=1, num_images_per_prompt=2, output_type="latent").latents.shape[0] == 2

    shutil.rmtree(full_size.bundle_of(place))
    full_size.checkpoint_of(place).unlink()
    sizes: list[Any] = []
    monkeypatch.setattr(
        "benchmarks.common.make_checkpoint.make_checkpoint",
        lambda folder, *facts: (folder.mkdir(), sizes.append(facts)),
    )

    def export(words: list[str]) -> int:
        arguments = _parser(words).parse_args(words)
        assert arguments.run is export_cli.run
        assert (Path(arguments.checkpoint).name, arguments.precision) == ("sd15.checkpoint", "fp16")
        shutil.copytree(small.bundle, arguments.out)
        return 0

    monkeypatch.setattr(full_size, "main", export)
    report = done("full_size", Place(full.work, backends=("onnxruntime",)))
    assert report.passed
    assert sizes == [("sd15", torch.float16)]
    assert list(report.figures) == ["seconds: checkpoint", "seconds: export"]
    assert full_size.checkpoint_of(place).is_dir()
