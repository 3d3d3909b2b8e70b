"""Graphs saved as ONNX Runtime optimizes them: the same bits, where they are used and where not, and builds of them."""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static
from PIL import Image
from support.exports import ROOT, SHAPES
from support.lora_files import shapes_file

from latentrt.export.build import ort_saved
from latentrt.export.build.ort_graphs import build_ort_graphs
from latentrt.export.build.store import Built
from latentrt.runtime import BackendError, Pipeline
from latentrt.runtime.backends.ort import saved_graphs, session
from latentrt.runtime.bundle import Bundle, EngineList, shape_at
from latentrt.runtime.cli.main import main
from latentrt.runtime.cpu import cpu_instructions
from latentrt.runtime.files import sha256_of_file

pytestmark = pytest.mark.skipif(not cpu_instructions(), reason="this system does not say what its CPU has")

PROMPT = "a small blue circle on a white background"
CALL: dict[str, Any] = {"num_inference_steps": 3, "output_type": "np", "seed": 5, "height": 96, "width": 64}
SAVED = {"denoise", "vae_decoder", "vae_encoder"}


@pytest.fixture(autouse=True, scope="module")
def _cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def build(bundle: Path, engines: Path | None = None, *, saved: bool = True) -> list[Built]:
    return list(build_ort_graphs(bundle, devices=["cpu"], engines=engines, saved=saved))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rewritten graphs of the embedded model."""
    folder = tmp_path_factory.mktemp("plain")
    build(SHAPES.bundle, folder, saved=False)
    return folder


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rewritten and saved graphs of the embedded model."""
    folder = tmp_path_factory.mktemp("built")
    build(SHAPES.bundle, folder)
    return folder


@pytest.fixture
def engines(built: Path, tmp_path: Path) -> Path:
    """A copy of `built`."""
    return Path(shutil.copytree(built, tmp_path / "engines"))


@pytest.fixture(scope="module")
def expected(plain: Path) -> NDArray[Any]:
    with loaded(plain) as pipe:
        return drawn(pipe)


def loaded(engines: Path) -> Pipeline:
    return Pipeline.load(SHAPES.bundle, backend="onnxruntime", device="cpu", engines=engines)


def drawn(pipe: Pipeline) -> NDArray[Any]:
    result = pipe(PROMPT, **CALL)
    return np.concatenate([result.latents.ravel(), np.asarray(result.images).ravel()])


def used(pipe: Pipeline, graph: str) -> Path:
    path: Path = pipe._backend.engine(graph).path  # type: ignore[attr-defined]
    return path


def saved_files(engines: Path | None, bundle: Path = SHAPES.bundle) -> dict[str, Path]:
    """Graph -> the saved file that is listed."""
    found = EngineList.of_bundle(Bundle.open(bundle), engines)
    records = [record for record in found.engines if record.saved]
    assert len({record.graph for record in records}) == len(records)
    return {record.graph: found.path(record) for record in records}


# --- where they are used ----------------------------------------------------------------------------------------------


def test_pictures_are_the_same_to_the_bit(built: Path, expected: NDArray[Any]) -> None:
    files = saved_files(built)
    assert files.keys() == SAVED
    nodes = onnx.load(files["denoise"], load_external_data=False).graph.node
    # Weights in blocks of the CPU's vectors, on top of the rewrites.
    assert {"com.microsoft.nchwc", "com.microsoft"} <= {node.domain for node in nodes}
    with loaded(built) as pipe:
        np.testing.assert_array_equal(drawn(pipe), expected)
        assert {graph: used(pipe, graph) for graph in SAVED} == files
        assert used(pipe, "text_encoder") == SHAPES.bundle / "text_encoder.onnx"


def test_pictures_as_input_are_the_same_to_the_bit(plain: Path, built: Path) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    found = []
    for folder in (plain, built):
        with loaded(folder) as pipe:
            found.append(pipe(PROMPT, image=image, num_inference_steps=4, seed=1, output_type="latent").latents)
    np.testing.assert_array_equal(*found)


def other_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("version", "saved by onnxruntime {version}, but 0.9.1 is installed"),
        ("instructions", "saved for a CPU with {instructions}, but this one has mmx sse"),
        ("unknown", "saved for a CPU with {instructions}, but this one has none that are known"),
        ("damaged", "its hash does not match"),
        ("missing", "its hash does not match"),
        ("shorter", "its hash does not match"),
    ],
)
def test_where_they_do_not_fit_the_rewritten_graph_is_used(
    engines: Path,
    expected: NDArray[Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    what: str,
    reason: str,
) -> None:
    facts = {"version": saved_graphs.version_here(), "instructions": " ".join(cpu_instructions())}
    files = saved_files(engines)
    for file in files.values():
        data = Path(f"{file}.data")
        match what:
            case "damaged":
                other_byte(data)
            case "missing":
                data.unlink()
            case "shorter":
                data.write_bytes(data.read_bytes()[:-1])
    if what == "version":
        monkeypatch.setattr(saved_graphs, "version_here", lambda: "0.9.1")
    if what in ("instructions", "unknown"):
        here = "mmx sse" if what == "instructions" else ""
        monkeypatch.setattr(saved_graphs, "instructions_here", lambda: here)
    with loaded(engines) as pipe:
        np.testing.assert_array_equal(drawn(pipe), expected)
        assert used(pipe, "denoise").parent == engines / "engines"
        assert used(pipe, "denoise") != files["denoise"]
        assert used(pipe, "vae_decoder") == SHAPES.bundle / "vae_decoder.onnx"
    (line,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert reason.format_map(facts) in line
    assert all(str(file) in line for file in files.values())
    assert f"latentrt build {SHAPES.bundle} --backend onnxruntime" in line


def test_changed_weights_need_the_rewritten_graph(plain: Path, built: Path, tmp_path: Path) -> None:
    lora = shapes_file(tmp_path / "style.safetensors", seed=4)
    pictures = []
    for folder in (plain, built):
        with loaded(folder) as pipe:
            for loras in ({lora: 0.7}, {}):
                pipe.set_loras(loras)
                pictures.append(drawn(pipe))
                assert (used(pipe, "denoise") in saved_files(built).values()) == (folder == built and not loras)
                assert (used(pipe, "vae_decoder") in saved_files(built).values()) == (folder == built)
    np.testing.assert_array_equal(pictures[0], pictures[2])
    np.testing.assert_array_equal(pictures[1], pictures[3])
    assert np.any(pictures[0] != pictures[1])


# --- quantized graphs -------------------------------------------------------------------------------------------------


class Random(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, feeds: dict[str, NDArray[Any]]) -> None:
        self.left = [feeds]

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        return self.left.pop() if self.left else None


def test_graphs_of_int8_are_saved_with_fused_operators(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "int8_overflows", lambda: False)  # else nothing would be fused on older CPUs
    bundle = Path(shutil.copytree(SHAPES.bundle, tmp_path / "shapes"))
    spec = Bundle.open(bundle).graph("vae_decoder")
    (latents,) = spec.inputs
    shape = shape_at(latents, {"B": 1, "h": 8, "w": 8})
    feeds = {latents.name: np.random.default_rng(2).standard_normal(shape).astype(np.float32)}
    file = bundle / spec.file
    quantize_static(file, tmp_path / "int8.onnx", Random(feeds), quant_format=QuantFormat.QDQ, per_channel=True)
    shutil.move(tmp_path / "int8.onnx", file)
    manifest = json.loads((bundle / "bundle.json").read_text())
    manifest["files"][spec.file] = {"size": file.stat().st_size, "sha256": sha256_of_file(file)}
    (bundle / "bundle.json").write_text(json.dumps(manifest))
    outputs = []
    for saved in (False, True):
        list(build_ort_graphs(bundle, devices=["cpu"], graphs=["denoise", "vae_decoder"], saved=saved))
        with Pipeline.load(bundle, backend="onnxruntime", device="cpu") as pipe:
            outputs.append(pipe._backend.engine("vae_decoder").run(feeds)[spec.outputs[0].name])
            path = used(pipe, "vae_decoder")
    operators = {node.op_type for node in onnx.load(path, load_external_data=False).graph.node}
    assert path.parent.name == "engines"
    assert "QLinearConv" in operators
    np.testing.assert_array_equal(*outputs)


# --- builds -----------------------------------------------------------------------------------------------------------


def test_what_a_build_lists(built: Path) -> None:
    again = build(SHAPES.bundle, built)
    assert [one.record.graph for one in again if one.record.saved] == ["denoise", "vae_decoder", "vae_encoder"]
    assert all(one.seconds is None for one in again)
    present = EngineList.of_bundle(Bundle.open(SHAPES.bundle), built)
    assert {f"engines/{path.name}" for path in (built / "engines").iterdir()} == present.files.keys()
    for name, listed in present.files.items():
        assert (listed.size, listed.sha256) == ((built / name).stat().st_size, sha256_of_file(built / name))
    for one in again:
        if one.record.saved:
            assert one.record.version == saved_graphs.version_here()
            assert one.record.options["instructions"] == " ".join(cpu_instructions())
            assert one.size == sum(present.files[f"{one.record.file}{end}"].size for end in ("", ".data"))


def test_a_build_on_another_machine_replaces_the_files(engines: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = saved_files(engines)
    monkeypatch.setattr(ort_saved, "instructions_here", lambda: "avx2 and more")
    build(SHAPES.bundle, engines)
    after = saved_files(engines)
    assert after.keys() == before.keys()
    assert not {*after.values()} & {*before.values()}
    assert not any(file.exists() or Path(f"{file}.data").exists() for file in before.values())


def test_a_damaged_one_is_built_again(engines: Path) -> None:
    damaged = saved_files(engines)["vae_decoder"]
    other_byte(Path(f"{damaged}.data"))
    again = {one.record.graph for one in build(SHAPES.bundle, engines) if one.seconds is not None}
    assert again == {"vae_decoder"}
    found = EngineList.of_bundle(Bundle.open(SHAPES.bundle), engines)
    assert all(found.intact(record) for record in found.engines)


def test_in_the_bundle_and_out_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command line says what each takes and what they take together; `--no-saved` removes them."""
    bundle = Path(shutil.copytree(SHAPES.bundle, tmp_path / "shapes"))
    words = ["build", str(bundle), "--backend", "onnxruntime", "--device", "cpu"]
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    data = [Path(f"{file}{end}") for file in saved_files(None, bundle).values() for end in ("", ".data")]
    assert len([line for line in lines if "any size, cpu, saved" in line]) == len(SAVED)
    size = sum(file.stat().st_size for file in data) / 2**20
    assert lines[-1].startswith(f"saved graphs take {size:,.1f} MiB")
    assert not Bundle.open(bundle).altered_files()
    assert main(["info", str(bundle)]) == 0
    assert f"cpu, saved for {' '.join(cpu_instructions())}" in capsys.readouterr().out
    assert main([*words, "--no-saved"]) == 0
    assert "saved" not in capsys.readouterr().out
    assert not any(file.exists() for file in data)
    assert not Bundle.open(bundle).altered_files()
    assert main([*words[:-1], "cuda", "--saved"]) == 1
    assert "--saved is for the CPU" in capsys.readouterr().err


@pytest.mark.parametrize("error", [BackendError("no memory"), KeyboardInterrupt(), OSError(28, "No space left")])
def test_a_build_that_fails_leaves_what_was_there(
    engines: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    before = {file: sha256_of_file(file) for file in engines.rglob("*") if file.is_file()}

    def fails(_source: object, target: Any, _spec: object) -> None:
        target.data.write_bytes(b"half")
        raise error

    monkeypatch.setattr(ort_saved, "save_graph", fails)
    monkeypatch.setattr(ort_saved, "instructions_here", lambda: "other")
    with pytest.raises((BackendError, KeyboardInterrupt)):
        build(SHAPES.bundle, engines)
    assert {file: sha256_of_file(file) for file in engines.rglob("*") if file.is_file()} == before


def test_a_killed_build_leaves_what_was_there(engines: Path, expected: NDArray[Any]) -> None:
    before = saved_files(engines)
    script = f"""
import os, signal
from latentrt.export.build import ort_saved
from latentrt.export.build.ort_graphs import build_ort_graphs
def killed(source, target, spec):
    target.path.write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
ort_saved.save_graph, ort_saved.instructions_here = killed, lambda: "other"
list(build_ort_graphs({str(SHAPES.bundle)!r}, devices=["cpu"], engines=ort_saved.Path({str(engines)!r}), saved=True))
"""
    child = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=os.environ, check=False)
    assert child.returncode == -signal.SIGKILL
    assert [path.name for path in (engines / "engines").glob(".*")] == [".saving"]
    assert saved_files(engines) == before
    with loaded(engines) as pipe:
        np.testing.assert_array_equal(drawn(pipe), expected)
        assert used(pipe, "denoise") == before["denoise"]
    build(SHAPES.bundle, engines)
    assert not [*(engines / "engines").glob(".*")]


def test_where_nothing_can_be_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without the library, or without facts on the CPU, the rewritten graphs alone are built, and a warning says so."""
    for name, nothing, reason in (
        ("version_here", None, "onnxruntime is not installed"),
        ("instructions_here", "", "does not say which instructions"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(ort_saved, name, lambda nothing=nothing: nothing)
            records = [one.record for one in build(SHAPES.bundle, tmp_path / name)]
        assert [record.graph for record in records if not record.saved] == ["denoise"]
        assert len(records) == 1
        assert reason in caplog.text
    opened = Bundle.open(SHAPES.bundle)
    recipe = replace(opened.manifest.recipe, precision="fp16")
    assert not ort_saved.can_save(replace(opened, manifest=replace(opened.manifest, recipe=recipe)))
    assert ort_saved.can_save(opened)
