"""Engine builds: sizes, refusals, cleanup, and real engines of TensorRT for RTX, built without a GPU."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.exports import SHAPES, Exported
from support.simulator import machine
from support.simulator.tensorrt import IBuilderConfig

from latentrt.export.build.profiles import (
    Span,
    buckets_from_options,
    profiles_of_graph,
    shapes_of_tensor,
    span_from_text,
)
from latentrt.export.build.store import Built
from latentrt.export.build.trt_builder import TrtBuilder
from latentrt.export.build.trt_engines import build_engines
from latentrt.export.build.trt_options import BuildOptions
from latentrt.runtime import BackendError, BundleError, ExportError, InputError
from latentrt.runtime.bundle import Bundle, EngineList, shape_at
from latentrt.runtime.cli.main import main
from latentrt.runtime.gpu.device import visible_devices

RTX = "tensorrt_rtx"
GRAPHS = {"text_encoder", "context", "time", "denoise", "blend", "vae_decoder", "vae_encoder"}
THREE = BuildOptions(compute_capabilities=("8.6", "8.9", "12.0"))


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A copy of the embedded bundle."""
    return Path(shutil.copytree(SHAPES.bundle, tmp_path / "shapes"))


@pytest.fixture(autouse=True)
def _cache_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def build(bundle: Path, sizes: dict[str, list[str]] | None = None, **options: Any) -> list[Built]:
    return list(build_engines(bundle, RTX, lambda b: buckets_from_options(b.manifest, **sizes or {}), **options))


def listed(bundle: Path, engines: Path | None = None) -> set[str]:
    found = EngineList.of_bundle(Bundle.open(bundle), engines)
    assert all(found.intact(record) for record in found.engines)
    return {record.file for record in found.engines}


# --- sizes --------------------------------------------------------------------------------------------------------


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9))
def test_spans_are_read_in_order(a: int, b: int, c: int) -> None:
    if a <= b <= c:
        assert span_from_text("--batch", f"{a}:{b}:{c}") == (a, b, c)
    else:
        with pytest.raises(InputError, match=f"--batch {a}:{b}:{c}"):
            span_from_text("--batch", f"{a}:{b}:{c}")


@pytest.mark.parametrize("text", ["", "0", "-1", "1:2", "1:2:3:4", "a", "1.5", "²", "1::2"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="--height"):
        span_from_text("--height", text)


def test_sizes_become_shapes() -> None:
    manifest = Bundle.open(SHAPES.bundle).manifest
    sizes = {"height": ["64:128:192"], "width": ["96"], "batch": ["1", "2:3:4"], "tokens": ["77:77:154"]}
    buckets = buckets_from_options(manifest, **sizes)
    assert [dict(b) for b in buckets] == [
        {"B": batch, "G": (2, 2, 2), "h": (8, 16, 24), "w": (12, 12, 12), "S": (77, 77, 154), "T": (4, 4, 16)}
        for batch in ((1, 1, 1), (2, 3, 4))
    ]
    denoise = manifest.graphs["denoise"]
    first, second = profiles_of_graph("denoise", denoise, buckets)
    key = next(spec for spec in denoise.inputs if spec.name == "key_00")
    width = key.shape[2]
    assert shapes_of_tensor(key, second) == ((4, 77, width), (6, 77, width), (8, 154, width))
    assert shapes_of_tensor(denoise.inputs[0], first) == ((1, 7, 4, 8, 12), (1, 7, 4, 16, 12), (1, 7, 4, 24, 12))
    encoder = manifest.graphs["vae_encoder"]
    (one, _) = profiles_of_graph("vae_encoder", encoder, buckets)
    assert shapes_of_tensor(encoder.inputs[0], one)[2] == (1, 192, 96, 3)
    # Graphs that run once per prompt have one engine for all buckets.
    (rows,) = profiles_of_graph("context", manifest.graphs["context"], buckets)
    assert rows == {"n": Span(1, 2, 16), "S": Span(77, 77, 154)}


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"height": ["100"]}, r"--height 100: expected multiples of 8"),
        ({"width": ["64:100:128"]}, r"--width 64:100:128: expected multiples of 8"),
        ({"tokens": ["80"]}, r"--tokens 80:80:80: expected multiples of 77"),
    ],
)
def test_sizes_that_the_model_has_not(sizes: dict[str, list[str]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        buckets_from_options(Bundle.open(SHAPES.bundle).manifest, **sizes)


# --- real engines ---------------------------------------------------------------------------------------------------


def test_without_a_fused_kernel_attention_is_computed_in_steps(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The first build fails, the second may keep all scores in memory, with a warning."""
    spec = Bundle.open(SHAPES.bundle).graph("denoise")
    sizes = {"B": 1, "G": 2, "h": 16, "w": 16, "S": 77}
    shapes = {tensor.name: [shape_at(tensor, sizes)] * 3 for tensor in spec.inputs}
    with machine() as gpu:
        builder = TrtBuilder("tensorrt", visible_devices())
        build_network, networks = gpu.libraries["tensorrt"].Builder.build_serialized_network, []

        def fails_first(self: Any, network: Any, config: Any) -> bytes | None:
            networks.append(network)
            return build_network(self, network, config) if len(networks) > 1 else None

        monkeypatch.setattr(gpu.libraries["tensorrt"].Builder, "build_serialized_network", fails_first)
        asked: list[bool] = []
        decompose = lambda _self, _network, *, but_for_fused=False: asked.append(but_for_fused) or int(but_for_fused)  # noqa: E731
        monkeypatch.setattr(TrtBuilder, "_decompose_attention", decompose)
        assert builder.engine_from_onnx(SHAPES.bundle / spec.file, shapes, BuildOptions(), fused_attention=True)
    assert asked == [True, False]
    assert "has no fused kernel for attention of denoise.onnx" in caplog.text


@pytest.mark.slow
def test_attention_of_16_bits_is_fused(exported: Callable[[str], Exported], caplog: pytest.LogCaptureFixture) -> None:
    """Also where it is cast to float32, as in Stable Diffusion 2."""
    bundle = Path(exported("sd2-fp16").bundle)
    options = BuildOptions(compute_capabilities=("8.9",))
    assert build(bundle, graphs=["denoise"], options=options, engines=bundle.parent / "fused_engines")
    assert not [record for record in caplog.records if "fused kernel" in record.message]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["shapes", "shapes-fp16", "sd2-fp16", "sd1-bf16", "sd2-fp32-opset18"])
def test_every_graph_builds_for_three_generations(
    exported: Callable[[str], Exported], tmp_path: Path, name: str
) -> None:
    bundle = Path(shutil.copytree(exported(name).bundle, tmp_path / name))
    factor = Bundle.open(bundle).manifest.model.vae_scale_factor
    static = {"height": [str(12 * factor)], "width": [str(16 * factor)]}
    pixels = ":".join(str(side * factor) for side in (8, 16, 24))
    dynamic = {"height": [pixels], "width": [pixels], "batch": ["1:2:4"], "groups": ["1:2:2"], "tokens": ["77:77:154"]}
    for sizes in (static, dynamic):
        built = build(bundle, sizes, options=THREE)
        assert {b.record.graph for b in built} == GRAPHS
        for b in built:
            assert b.record.compute_capabilities == ("8.6", "8.9", "12.0")
            assert (bundle / b.record.file).read_bytes()[:4] == b"vtrt"
    assert len(listed(bundle)) == 2 * len(GRAPHS) - 1  # `time` has the same sizes in both


def test_a_second_build_keeps_what_is_there(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["build", str(bundle), "--backend", RTX, "--graph", "blend", "--graph", "context", "--batch", "2"]
    assert main(command) == 0
    before = (bundle / "bundle.json").read_bytes()
    assert "already built" not in capsys.readouterr().out
    assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["blend", "context"]
    assert all(line.endswith("already built") for line in lines)
    assert (bundle / "bundle.json").read_bytes() == before
    # Other options make another engine, which replaces the one with the same sizes.
    (blend,) = build(bundle, {"batch": ["2"]}, graphs=["blend"], options=BuildOptions(tf32=True))
    assert blend.seconds is not None
    assert len(listed(bundle)) == 2
    (other,) = build(bundle, {"batch": ["3"]}, graphs=["blend"])
    assert {blend.record.file, other.record.file} < listed(bundle)
    assert main(["info", str(bundle)]) == 0
    assert "B=3 h=16 w=16" in capsys.readouterr().out
    assert main(["verify", str(bundle), "--hashes-only"]) == 0


@pytest.mark.parametrize(("precision", "given", "expected"), [
    ("fp32", None, {"vae_decoder": False, "blend": False}),
    ("fp16", None, {"vae_decoder": True, "blend": False}),
    ("fp16", False, {"vae_decoder": False, "blend": False}),
    ("fp32", True, {"vae_decoder": True, "blend": True}),
])  # fmt: skip
def test_an_fp32_vae_beside_16_bits_is_built_with_tf32(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, precision: str, given: bool | None, expected: dict[str, bool]
) -> None:
    manifest = json.loads((bundle / "bundle.json").read_text())
    manifest["recipe"]["precision"] = precision
    (bundle / "bundle.json").write_text(json.dumps(manifest))
    with machine() as gpu:
        flags = gpu.libraries[RTX].BuilderFlag
        cleared: list[Any] = []
        monkeypatch.setattr(IBuilderConfig, "clear_flag", lambda _self, flag: cleared.append(flag))
        built = gpu.build(bundle, RTX, options=BuildOptions(tf32=given), graphs=list(expected))
    assert {one.record.graph: one.record.tf32 for one in built} == expected
    assert cleared.count(flags.TF32) == list(expected.values()).count(False)


@pytest.mark.parametrize(("version", "builds"), [("11.3.0.14", False), ("11.30.1.1", True), ("10.16.1.11", True)])
def test_a_library_that_loses_biases_builds_no_refittable_engines(bundle: Path, version: str, builds: bool) -> None:
    with machine({"tensorrt": version}) as gpu:
        gpu.build(bundle, "tensorrt", graphs=["blend"])
        if builds:
            gpu.build(bundle, "tensorrt", options=BuildOptions(refittable=True), graphs=["blend"])
            return
        with pytest.raises(BackendError, match=r"tensorrt 11\.3\.0\.14 may drop the bias .* without --refittable"):
            gpu.build(bundle, "tensorrt", options=BuildOptions(refittable=True), graphs=["blend"])


def test_a_flipped_bit_is_seen_and_built_again(bundle: Path) -> None:
    (first,) = build(bundle, graphs=["blend"])
    file = bundle / first.record.file
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    engines = EngineList.of_bundle(Bundle.open(bundle))
    assert not engines.intact(first.record)
    (second,) = build(bundle, graphs=["blend"])
    assert second.seconds is not None
    assert listed(bundle) == {second.record.file}


def test_engines_outside_of_the_bundle(bundle: Path, tmp_path: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in bundle.rglob("*")}
    engines = tmp_path / "new" / "engines"
    build(bundle, graphs=["blend"], engines=engines)
    assert len(listed(bundle, engines)) == 1
    assert {p: p.stat().st_mtime_ns for p in bundle.rglob("*")} == before
    text = (engines / "engines.json").read_text()
    (engines / "engines.json").write_text(text.replace("latentrt.engines/1", "latentrt.engines/9"))
    with pytest.raises(BundleError, match=r"engines/9.*engines/1"):
        EngineList.of_bundle(Bundle.open(bundle), engines)
    (engines / "engines.json").write_text(text.replace('"tf32"', '"tf23"'))
    with pytest.raises(BundleError, match=r"'tf23'; did you mean 'tf32'"):
        EngineList.of_bundle(Bundle.open(bundle), engines)
    data = json.loads(text)
    data["engines"][0]["file"] = "../shapes/time.onnx"
    (engines / "engines.json").write_text(json.dumps(data))
    outside = EngineList.of_bundle(Bundle.open(bundle), engines)
    with pytest.raises(BundleError, match=r"is not one of its files"):
        outside.path(outside.engines[0])


def test_two_builds_at_once_share_the_timing_cache(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each build has written the cache before either puts it in place."""
    both_have_written = threading.Barrier(2, timeout=60)
    write_bytes = Path.write_bytes

    def write_and_wait(path: Path, content: Any) -> int:
        size = write_bytes(path, content)
        if path.parent.name == "timing":
            both_have_written.wait()
        return size

    monkeypatch.setattr(Path, "write_bytes", write_and_wait)
    with machine() as gpu, ThreadPoolExecutor(2) as pool:
        builds = [
            pool.submit(gpu.build, bundle, "tensorrt", graphs=["blend"], engines=tmp_path / name) for name in "ab"
        ]
        assert [len(build.result()) for build in builds] == [1, 1]
    (cache,) = (tmp_path / "cache" / "latentrt" / "timing").iterdir()
    assert cache.read_bytes() == b"timed "


def test_two_builds_at_once_lose_nothing(bundle: Path) -> None:
    command = [sys.executable, "-m", "latentrt.runtime.cli", "build", str(bundle), "--backend", RTX, "--graph", "blend"]
    children = [subprocess.Popen([*command, "--batch", str(batch)], stdout=subprocess.DEVNULL) for batch in (1, 2, 3)]
    assert [child.wait() for child in children] == [0, 0, 0]
    assert len(listed(bundle)) == 3


# --- what goes wrong ------------------------------------------------------------------------------------------------


def test_an_interrupt_leaves_everything_as_it_was(bundle: Path) -> None:
    build(bundle, graphs=["blend"])
    before = {p: p.read_bytes() for p in bundle.rglob("*") if p.is_file()}
    shares = []

    def progress(_task: Any, _phase: str, share: float) -> None:
        shares.append(share)
        if len(shares) == 40:
            os.kill(os.getpid(), signal.SIGINT)  # reaches the main thread, as from a terminal

    with pytest.raises(KeyboardInterrupt):
        build(bundle, graphs=["denoise"], progress=progress)
    assert {p: p.read_bytes() for p in bundle.rglob("*") if p.is_file()} == before
    assert len(shares) < 1200, len(shares)  # of about 2,000: the build was cancelled
    assert all(0 <= share <= 1 for share in shares)


def test_progress_grows_to_the_end(bundle: Path) -> None:
    shares: list[float] = []
    build(bundle, graphs=["vae_encoder"], progress=lambda _task, _phase, share: shares.append(share))
    assert shares == sorted(shares)
    assert shares[0] == 0
    assert shares[-1] > 0.8


def test_a_killed_build_is_cleaned_up_by_the_next(bundle: Path) -> None:
    (bundle / "engines").mkdir()
    (bundle / "engines" / "denoise-0123456789ab.partial").write_bytes(b"half")
    (bundle / "engines" / "denoise-0123456789ab.plan").write_bytes(b"whole, but not in the list")
    (blend,) = build(bundle, graphs=["blend"])
    assert {f"engines/{p.name}" for p in (bundle / "engines").iterdir()} == {blend.record.file, blend.record.layers}


def test_an_altered_graph_is_not_built(bundle: Path) -> None:
    content = bytearray((bundle / "blend.onnx").read_bytes())
    content[-1] ^= 1
    (bundle / "blend.onnx").write_bytes(content)
    with pytest.raises(ExportError, match=r"altered: blend.onnx.*export it again"):
        build(bundle, graphs=["blend"])
    build(bundle, graphs=["context"])  # the others are what they were


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--compute-capability", "9.0"], r"9.0: tensorrt_rtx 1\S+ builds for 7.5, 8.0, 8.6"),
        (["--compute-capability", "current"], r"current excludes others, and needs a GPU"),
        (["--refittable"], r"needs a GPU to build with --refittable"),
        (["--strip-weights"], r"needs a GPU to build with --strip-weights"),
        (["--version-compatible"], r"needs a GPU to build with --version-compatible"),
        (["--hardware-compatible", "ampere_plus"], r"is for tensorrt; .* --compute-capability"),
        (["--tactics", "jit_convolutions"], r"--tactics is for tensorrt, .* Build without --tactics"),
        (["--timing-iterations", "4"], r"--timing-iterations is for tensorrt,"),
        (["--best-of", "2"], r"--best-of is for tensorrt, which times kernels on its GPU"),
        (["--best-of", "0"], r"--best-of 0: expected an integer from 1 on"),
        (["--tiling-l2", "8"], r"--tiling-l2 limits the tiles of --tiling: pass --tiling fast"),
        (["--optimization-level", "6"], r"level 6: expected an integer from 0 to 5"),
        (["--graph", "denois"], r"unknown graph 'denois'; did you mean 'denoise'"),
        (["--height", "100"], r"multiples of 8"),
    ],
)
def test_what_is_not_possible_is_refused(
    options: list[str], message: str, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["build", str(bundle), "--backend", RTX, *options]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(message, error)
    assert not (bundle / "engines").exists()


def test_a_library_that_is_not_there(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for backend, extra in (("tensorrt", "tensorrt-cu13"), (RTX, "tensorrt-rtx")):
        monkeypatch.setitem(sys.modules, backend, None)
        with pytest.raises(BackendError, match=rf"pip install 'latentrt\[{extra}\]'"):
            list(build_engines(bundle, backend, lambda b: buckets_from_options(b.manifest)))
    with pytest.raises(InputError, match=r"unknown backend 'tensort'; did you mean 'tensorrt"):
        TrtBuilder("tensort", ())


def test_a_graph_that_the_library_cannot_read(bundle: Path) -> None:
    """Arithmetic on bytes, which TensorRT does not support: the error has its reason, and nothing is left."""
    node = onnx.helper.make_node("Transpose", ["mask"], ["next_state"], perm=[1, 0])
    tensors = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.UINT8, [2, 2]) for name in node.input]
    outputs = [onnx.helper.make_tensor_value_info("next_state", onnx.TensorProto.UINT8, [2, 2])]
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "blend", tensors, outputs))
    onnx.save(model, bundle / "blend.onnx")
    manifest = json.loads((bundle / "bundle.json").read_text())
    content = (bundle / "blend.onnx").read_bytes()
    manifest["files"]["blend.onnx"] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (bundle / "bundle.json").write_text(json.dumps(manifest))
    with pytest.raises(ExportError, match=r"tensorrt_rtx \S+ cannot (read|build) blend.onnx: .*UInt8"):
        build(bundle, graphs=["blend"])
    assert not (bundle / "engines").exists()


# --- with a GPU, simulated --------------------------------------------------------------------------------------------


def test_kernel_timings_are_kept_for_each_gpu_and_version(bundle: Path, tmp_path: Path) -> None:
    def timings() -> dict[str, bytes]:
        return {p.name: p.read_bytes() for p in (tmp_path / "cache" / "latentrt" / "timing").iterdir()}

    with machine() as gpu:
        gpu.build(bundle, "tensorrt", graphs=["blend"])
        gpu.build(bundle, "tensorrt", {"batch": ["2"]}, graphs=["blend"])
        assert timings() == {"tensorrt_10.16.1.11_Simulated_GPU.cache": b"timed timed "}
        (cache,) = (tmp_path / "cache" / "latentrt" / "timing").iterdir()
        cache.write_bytes(b"damaged")
        gpu.build(bundle, "tensorrt", {"batch": ["3"]}, graphs=["blend"])
        assert set(timings().values()) == {b"timed "}
    with machine({"tensorrt": "11.0.0.114"}) as gpu:
        gpu.build(bundle, "tensorrt", graphs=["blend"])
        assert len(timings()) == 2


@pytest.mark.parametrize(
    ("backend", "options", "device", "capabilities"),
    [
        ("tensorrt", BuildOptions(), "Simulated GPU", ("8.9",)),
        ("tensorrt", BuildOptions(hardware_compatible="ampere_plus"), None, ("8.0+",)),
        ("tensorrt", BuildOptions(hardware_compatible="same_compute_capability"), None, ("8.9",)),
        (RTX, BuildOptions(), None, ("8.9",)),
        (RTX, BuildOptions(compute_capabilities=("8.6", "12.0")), None, ("8.6", "12.0")),
        (RTX, BuildOptions(refittable=True, strip_weights=True), None, ("8.9",)),
    ],
)
def test_records_say_what_an_engine_fits(
    bundle: Path, backend: str, options: BuildOptions, device: str | None, capabilities: tuple[str, ...]
) -> None:
    with machine() as gpu:
        (built,) = gpu.build(bundle, backend, options=options, graphs=["time"])
    assert (built.record.device, built.record.compute_capabilities) == (device, capabilities)
    assert built.record.options["refittable"] == str(options.refittable).lower()


@pytest.mark.parametrize(
    ("backend", "options", "message"),
    [
        ("tensorrt", BuildOptions(compute_capabilities=("8.6",)), r"--compute-capability is for tensorrt_rtx"),
        (RTX, BuildOptions(hardware_compatible="ampere_plus"), r"--hardware-compatible is for tensorrt;"),
        (RTX, BuildOptions(compute_capabilities=("current", "8.9")), r"current excludes others"),
    ],
)
def test_options_of_the_other_library_are_refused(
    bundle: Path, backend: str, options: BuildOptions, message: str
) -> None:
    with machine() as gpu, pytest.raises(InputError, match=message):
        gpu.build(bundle, backend, options=options)
