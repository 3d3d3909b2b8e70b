"""Engines of quantized bundles: what is refused before it is built, pictures on a simulated GPU, and real engines."""

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.exports import SHAPES, Exported
from support.simulator import machine
from support.trt_engines import same

from benchmarks.common.made_up_ranges import with_made_up_ranges
from latentrt.export.build.inspection import inspect_engines
from latentrt.export.build.profiles import buckets_from_options
from latentrt.export.build.store import Built
from latentrt.export.build.trt_builder import Serialized, TrtBuilder
from latentrt.export.build.trt_engines import build_engines
from latentrt.export.build.trt_job import build_here
from latentrt.export.build.trt_options import BuildOptions
from latentrt.runtime import ExportError, InputError, Pipeline, Result
from latentrt.runtime.bundle import Bundle, shape_at
from latentrt.runtime.cli.main import main
from latentrt.runtime.goldens import relative_error

RTX = "tensorrt_rtx"
FP8 = BuildOptions(compute_capabilities=("8.9", "12.0"))


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The embedded bundle, quantized with made-up ranges."""
    made: dict[tuple[str, str], Path] = {}

    def get(to: str, target: str = "tensorrt") -> Path:
        if (to, target) not in made:
            made[to, target] = tmp_path_factory.mktemp("quantized") / f"{to}-{target}"
            assert with_made_up_ranges(SHAPES.bundle, made[to, target], to, target=target) == 96
        return made[to, target]

    return get


@pytest.fixture(autouse=True)
def _cache_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def graphs_built(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that the library was given; it builds nothing."""
    given: list[str] = []

    def build(_self: TrtBuilder, onnx: Path, *_: Any, **__: Any) -> Serialized:
        given.append(onnx.name)
        return Serialized(b"engine", "")

    monkeypatch.setattr(TrtBuilder, "engine_from_onnx", build)
    monkeypatch.setattr("latentrt.export.build.trt_engines.build_in_child", build_here)
    return given


def build(bundle: Path, engines: Path, backend: str = RTX, **more: Any) -> list[Built]:
    return list(build_engines(bundle, backend, lambda b: buckets_from_options(b.manifest), engines=engines, **more))


# --- refusals and records ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("to", "target", "options", "message"),
    [
        ("fp8", "tensorrt", ["--compute-capability", "8.6"], r"from compute capability 8.9 on: leave out .*ity 8.6\. "),
        (
            *("fp8", "tensorrt", ["--compute-capability", "8.6", "--compute-capability", "8.9"]),
            r"is fp8, .*: leave out --compute-capability 8.6\. For older GPUs, build the bundle that this one was made",
        ),
        ("fp8", "tensorrt", ["--refittable"], r"--refittable is for LoRA, and .* is fp8: .* quantize .* --lora"),
        ("int8-weights", "tensorrt", ["--refittable", "--graph", "blend"], r"--refittable is for LoRA, .*int8-weights"),
        ("fp8", "tensorrt", ["--strip-weights"], r"--strip-weights: .* is fp8, and .* Build without --strip-weights"),
        ("int8", "onnxruntime", [], r"is int8 for onnxruntime, with zero points, .* --to int8 --for tensorrt --calib"),
        ("int8", "openvino", [], r"is int8 for openvino, with zero points, which TensorRT does not read"),
    ],
)
def test_what_cannot_be_built_is_refused_before(
    quantized: Callable[..., Path],
    tmp_path: Path,
    graphs_built: list[str],
    capsys: pytest.CaptureFixture[str],
    to: str,
    target: str,
    options: list[str],
    message: str,
) -> None:
    command = ["build", str(quantized(to, target)), "--backend", RTX, "--engines", str(tmp_path / "engines")]
    assert main([*command, *options]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(message, error)
    assert not (tmp_path / "engines").exists()
    assert graphs_built == []


@pytest.mark.parametrize(
    ("backend", "capability", "options", "message"),
    [
        ("tensorrt", "8.6", BuildOptions(), r"from compute capability 8.9 on: this GPU has 8.6\. For older GPUs"),
        (RTX, "8.6", BuildOptions(), r"this GPU has 8.6"),
        ("tensorrt", "8.9", BuildOptions(hardware_compatible="ampere_plus"), r"build without --hardware-compatible"),
        ("tensorrt", "8.9", BuildOptions(strip_weights=True), r"Build without --strip-weights"),
        ("tensorrt", "8.9", BuildOptions(refittable=True), r"Build without --refittable"),
        ("tensorrt", "8.9", BuildOptions(), None),
        ("tensorrt", "9.0", BuildOptions(), None),
        (RTX, "12.0", BuildOptions(), None),
        (RTX, "8.6", BuildOptions(compute_capabilities=("8.9",)), None),
    ],
)
def test_the_gpu_decides_about_fp8(
    quantized: Callable[..., Path],
    tmp_path: Path,
    graphs_built: list[str],
    backend: str,
    capability: str,
    options: BuildOptions,
    message: str | None,
) -> None:
    with machine(capability=capability):
        if message is None:
            assert build(quantized("fp8"), tmp_path, backend, options=options, graphs=["denoise"])
            return
        with pytest.raises(InputError, match=message):
            build(quantized("fp8"), tmp_path, backend, options=options)
    assert graphs_built == []


@pytest.mark.usefixtures("graphs_built")
def test_targets_and_records(
    quantized: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a GPU, engines of fp8 are for fewer GPUs by default. Records of other graphs are what they were."""
    plain = {one.record.graph: one.record for one in build(SHAPES.bundle, tmp_path / "plain")}
    for to, capabilities in (("fp8", ("8.9", "12.0")), ("int8", ("8.6", "8.9", "12.0"))):
        built = build(quantized(to), tmp_path / to)
        assert {one.record.compute_capabilities for one in built} == {capabilities}
        for record in (one.record for one in built):
            kept = plain[record.graph].options
            assert record.options == (kept | {"quantization": to} if record.graph == "denoise" else kept)
    # Of a bundle that is fp8, all other graphs are for any GPU.
    older = BuildOptions(compute_capabilities=("8.6",))
    (blend,) = build(quantized("fp8"), tmp_path / "older", options=older, graphs=["blend"])
    assert blend.record.compute_capabilities == ("8.6",)
    assert main(["info", str(quantized("fp8"))]) == 0
    assert "quantized   denoise: fp8 for tensorrt, level 3" in capsys.readouterr().out


@pytest.mark.usefixtures("graphs_built")
@pytest.mark.parametrize(
    ("to", "backend", "graph", "warned"),
    [
        ("int8", RTX, "denoise", 1),
        ("int8", RTX, "blend", 0),
        ("int8", "tensorrt", "denoise", 0),
        ("fp8", RTX, "denoise", 0),
        ("int8-weights", RTX, "denoise", 0),
    ],
)
def test_int8_for_rtx_is_warned_of(
    quantized: Callable[..., Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    to: str,
    backend: str,
    graph: str,
    warned: int,
) -> None:
    with caplog.at_level(logging.WARNING), machine():
        build(quantized(to), tmp_path, backend, graphs=[graph])
    assert sum("do not expect engines of int8" in message for message in caplog.messages) == warned


# --- pictures ---------------------------------------------------------------------------------------------------------


def draw(bundle: Path, **more: Any) -> Result:
    with Pipeline.load(bundle, **more) as pipe:
        return pipe("a small red star", num_inference_steps=3, seed=4, scheduler="euler", output_type="np")


def draws_as_onnxruntime(bundle: Path, source: Path, engines: Path, backend: str) -> None:
    """The engine draws what ONNX Runtime draws of the same bundle, which is not what the source draws."""
    expected, unquantized = (draw(path, backend="onnxruntime", device="cpu") for path in (bundle, source))
    with machine():
        build(bundle, engines, backend)
        got = draw(bundle, backend=backend, engines=engines)
    same(got.latents, expected.latents)
    assert np.abs(np.int16(got.images) - np.int16(expected.images)).max() <= 1
    assert 1e-3 < relative_error(got.latents, unquantized.latents) < 0.7


@pytest.mark.parametrize(("to", "backend"), [("fp8", "tensorrt"), ("int8", RTX)])
def test_made_up_ranges_draw(quantized: Callable[..., Path], tmp_path: Path, to: str, backend: str) -> None:
    draws_as_onnxruntime(quantized(to), SHAPES.bundle, tmp_path, backend)


@pytest.mark.slow
@pytest.mark.parametrize("to", ["fp8", "int8"])
@pytest.mark.parametrize("name", ["shapes", "sd2-fp16"])
def test_a_calibrated_bundle_draws_and_builds(
    exported: Callable[[str], Exported], tmp_path: Path, name: str, to: str
) -> None:
    """From `latentrt quantize` to real engines, whose every product is in 8 bits, and pictures on a simulated GPU."""
    source, bundle = exported(name).bundle, tmp_path / to
    side = str(8 * Bundle.open(source).manifest.model.vae_scale_factor)
    command = ["quantize", str(source), str(bundle), "--to", to, "--for", "tensorrt", "--gate", "9,9", "--steps", "2"]
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red star\na blue ring\na green square\na small black circle\n", encoding="utf-8")
    assert main([*command, "--calibrate", str(prompts), "--height", side, "--width", side]) == 0
    draws_as_onnxruntime(bundle, source, tmp_path / "simulated", "tensorrt")
    targets = FP8 if to == "fp8" else BuildOptions(compute_capabilities=("8.9",))
    (built,) = build(bundle, tmp_path / "real", options=targets, graphs=["denoise"])
    assert (tmp_path / "real" / built.record.file).read_bytes()[:4] == b"vtrt"
    (found,) = inspect_engines(bundle, engines=tmp_path / "real")
    assert found.fusion is not None
    assert found.fusion.quantized.parts == {"shapes": 96, "sd2-fp16": 28}[name]
    assert found.fusion.quantized.others == ()


@pytest.mark.slow
def test_the_library_itself_refuses_fp8_for_older_gpus(quantized: Callable[..., Path]) -> None:
    """If a later version builds it, our refusal must go."""
    bundle = Bundle.open(quantized("fp8"))
    spec = bundle.graph("denoise")
    shapes = {tensor.name: [shape_at(tensor, {"B": 1, "G": 2, "h": 8, "w": 8, "S": 77})] * 3 for tensor in spec.inputs}
    library = TrtBuilder(RTX, ())
    options = library.check(BuildOptions(compute_capabilities=("8.6", "8.9")))
    with pytest.raises(ExportError, match=r"Cannot compile for target.*sm86.*fp8_e4m3"):
        library.engine_from_onnx(bundle.file(spec.file), shapes, options)
