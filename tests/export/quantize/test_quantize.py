"""Quantizing bundles: what is written, what is refused, and that the gate sees faults."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from support.exports import SHAPES, Exported
from support.lora_files import shapes_file

from latentrt.export.quantize import QuantizeOptions, quantize_bundle
from latentrt.export.quantize.layers import chosen, find_layers
from latentrt.export.quantize.observe import read_calibration
from latentrt.runtime import BundleError, InputError, Pipeline
from latentrt.runtime.bundle import Bundle
from latentrt.runtime.cli.main import main
from latentrt.runtime.errors import ExportError
from latentrt.runtime.goldens import psnr, relative_error, verify_goldens

PROMPTS = (
    "a small yellow heart on a purple background",
    "a red square and a green circle on a white background",
    "a large white triangle on a blue background",
    "a black star on an orange background",
)
QUICK = QuantizeOptions(to="int8", target="onnxruntime", prompts=PROMPTS, steps=3, gate_mean=0.5, gate_worst=0.9)


@pytest.fixture(autouse=True)
def _without_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiling takes longer than all that is tested here."""
    for module in ("options", "quantize"):
        monkeypatch.setattr(f"latentrt.export.quantize.{module}.openvino_is_installed", lambda: False)


@pytest.fixture(scope="module")
def int8(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("quantized") / "int8"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("latentrt.export.quantize.quantize.openvino_is_installed", lambda: False)
        return quantize_bundle(SHAPES.bundle, out, QUICK).bundle


def report_of(bundle: Bundle) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = bundle.read_json("quantization.json")["layers"]
    return rows


def quantized_weights(path: Path) -> set[str]:
    """What the graph itself says."""
    graph = ir.load(path).graph
    kinds = {ir.DataType.INT8, ir.DataType.FLOAT8E4M3FN}
    return {
        str(name).removesuffix(".quantized")
        for name, value in graph.initializers.items()
        if value.dtype in kinds and value.const_value is not None and len(value.const_value.shape) > 1
    }


def test_a_quantized_bundle(int8: Bundle) -> None:
    recipe = int8.manifest.recipe.quantization
    assert recipe is not None
    assert (recipe.to, recipe.target, recipe.level, recipe.prompts) == ("int8", "onnxruntime", 3.0, 4)
    assert int8.manifest.format == "latentrt.bundle/2"
    assert int8.altered_files() == []
    assert sorted(p.name for p in int8.path.iterdir()) == sorted(
        {*(p.name for p in SHAPES.bundle.iterdir()), "quantization.json", "quantization.safetensors"}
    )
    sizes = [(folder / "denoise.onnx.data").stat().st_size for folder in (SHAPES.bundle, int8.path)]
    assert sizes[1] < 0.57 * sizes[0]  # from 16 bits
    with Pipeline.load(int8.path, backend="onnxruntime") as pipe:
        assert int8.manifest.golden is None or all(check.passed for check in verify_goldens(pipe))
        mine = pipe(PROMPTS[0], seed=4, num_inference_steps=4, output_type="np")
    with Pipeline.load(SHAPES.bundle, backend="onnxruntime") as pipe:
        theirs = pipe(PROMPTS[0], seed=4, num_inference_steps=4, output_type="np")
    error = relative_error(mine.latents, theirs.latents)
    assert 0.001 < error < 0.2


def test_goldens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their limits are raised to what the bundle keeps, or they are left out."""
    options = replace(QUICK, keep_float=30, steps=2)
    bundle = quantize_bundle(SHAPES.bundle, tmp_path / "with", options).bundle
    with Pipeline.load(bundle.path, backend="onnxruntime") as pipe:
        assert all(check.passed for check in verify_goldens(pipe))
    assert bundle.manifest.golden is not None
    assert bundle.manifest.golden.latents_tolerance > 0.001
    monkeypatch.setattr("latentrt.export.quantize.new_manifest._MOST", 1e-4)
    made = quantize_bundle(SHAPES.bundle, tmp_path / "without", options)
    assert made.bundle.manifest.golden is None
    assert made.lines[-1].startswith("no goldens: ")


def test_nothing_is_left_out_by_mistake(int8: Bundle) -> None:
    """The report, the rule and the written graph name the same layers."""
    rule = {layer.name for layer in chosen(find_layers(ir.load(SHAPES.bundle / "denoise.onnx").graph), 3.0)}
    rows = report_of(int8)
    assert {row["layer"] for row in rows if row["quantized"]} == rule == quantized_weights(int8.path / "denoise.onnx")
    assert {row["reason"] for row in rows if not row["quantized"]} == {"first layer", "last layer", "shortcut"}
    assert all((row["cost"] is not None) == row["quantized"] for row in rows)
    uses = {use.graph for some in int8.manifest.weights.values() for use in some}
    assert uses == {"text_encoder", "context", "time", "vae_decoder", "vae_encoder"}


def test_another_level_from_the_same_calibration(int8: Bundle, tmp_path: Path) -> None:
    stages = []
    known = read_calibration(int8.path / "quantization.safetensors")
    options = replace(QUICK, to="int8", level=1.0, calibration=known, prompts=known.prompts, keep_float=3)
    made = quantize_bundle(
        SHAPES.bundle, tmp_path / "level-1", options, progress=lambda stage, *_: stages.append(stage)
    )
    assert "calibrate" not in stages
    assert {"reference", "rank layers", "judge"} <= {*stages}
    rows = report_of(made.bundle)
    costs = sorted((row["cost"] for row in rows if row["cost"] is not None), reverse=True)
    assert [row["cost"] for row in rows if row["reason"] == "cost"] != []
    assert sorted((row["cost"] for row in rows if row["reason"] == "cost"), reverse=True) == costs[:3]
    assert {row["kind"] for row in rows if row["quantized"]} == {"convolution"}
    assert any(line.startswith("layers that cost most") for line in made.lines)
    with pytest.raises(InputError, match="made from another bundle"):
        quantize_bundle(SHAPES.bundle, tmp_path / "x", replace(options, calibration=replace_source(known)))


def replace_source(known: Any) -> Any:
    return type(known)("other", known.prompts, known.watched, known.ranges, known.channels)


def test_below_the_gate_nothing_is_written(tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(SHAPES.bundle, out)
    before = (out / "bundle.json").read_bytes()
    options = replace(QUICK, to="fp8", target="tensorrt", gate_mean=0.001, overwrite=True)
    with pytest.raises(ExportError, match=r"below the gate: .* --keep-float \d+ is likely to pass"):
        quantize_bundle(SHAPES.bundle, out, options)
    assert (out / "bundle.json").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.slow
def test_loras_are_refused_and_merged_before(int8: Bundle, tmp_path: Path) -> None:
    lora = shapes_file(tmp_path / "lora.safetensors", 5)
    with Pipeline.load(int8.path, backend="onnxruntime") as pipe, pytest.raises(InputError, match="Merge it before"):
        pipe.set_loras({lora: 0.7})
    merged = quantize_bundle(SHAPES.bundle, tmp_path / "merged", replace(QUICK, loras={lora: 0.7})).bundle
    assert [(a.kind, a.name, a.weight) for a in merged.manifest.checkpoint.additions] == [("lora", lora.name, 0.7)]
    call: dict[str, Any] = {"seed": 3, "num_inference_steps": 4, "output_type": "np"}
    with Pipeline.load(SHAPES.bundle, backend="onnxruntime") as pipe:
        plain = pipe(PROMPTS[1], **call)
        pipe.set_loras({lora: 0.7})
        expected = pipe(PROMPTS[1], **call)
    with Pipeline.load(merged.path, backend="onnxruntime") as pipe:
        found = pipe(PROMPTS[1], **call)
    assert relative_error(found.latents, expected.latents) < 0.5 * relative_error(plain.latents, expected.latents)
    assert merged.manifest.golden is None


@pytest.mark.slow
def test_text_encoder_and_vae(tmp_path: Path) -> None:
    graphs = ("text_encoder", "vae_decoder")
    made = quantize_bundle(SHAPES.bundle, tmp_path / "out", replace(QUICK, graphs=graphs)).bundle
    for graph in graphs:
        rule = {layer.name for layer in chosen(find_layers(ir.load(SHAPES.bundle / f"{graph}.onnx").graph), 3.0)}
        assert quantized_weights(made.path / f"{graph}.onnx") == rule != set()
    assert not quantized_weights(made.path / "denoise.onnx")
    with Pipeline.load(made.path, backend="onnxruntime") as pipe:
        mine = pipe(PROMPTS[0], seed=4, output_type="np")
    with Pipeline.load(SHAPES.bundle, backend="onnxruntime") as pipe:
        theirs = pipe(PROMPTS[0], seed=4, output_type="np")
    assert 20 < psnr(np.asarray(mine.images), np.asarray(theirs.images)) < 60


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"to": "int4"}, "unknown quantization 'int4'"),
        ({"target": "cuda"}, "unknown target 'cuda'"),
        ({"to": "fp8"}, "fp8 for onnxruntime: no such kernels"),
        ({"level": 4.0}, "level is 4"),
        ({"graphs": ("unet",)}, "unknown graph 'unet'"),
        ({"graphs": ("context",)}, "unknown graph 'context'"),
        ({"prompts": PROMPTS[:3]}, "3 prompts; expected at least 4"),
        ({"keep_float": -1}, "keep_float is -1"),
        ({"graphs": ("text_encoder",), "keep_float": 2}, "keep_float counts layers of denoise"),
        ({"gate_worst": 0.0}, "gate_worst is 0"),
    ],
)
def test_wrong_options(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        quantize_bundle(SHAPES.bundle, tmp_path / "out", replace(QUICK, **change))
    assert not [*tmp_path.iterdir()]


def test_wrong_places(int8: Bundle, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is quantized already"):
        quantize_bundle(int8.path, tmp_path / "out", QUICK)
    with pytest.raises(ExportError, match="already exists"):
        quantize_bundle(SHAPES.bundle, tmp_path, QUICK)
    with pytest.raises(BundleError, match="is not a folder"):
        quantize_bundle(tmp_path / "nothing", tmp_path / "out", QUICK)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts, out = tmp_path / "prompts.txt", tmp_path / "out"
    prompts.write_text("\n\n".join(PROMPTS) + "\n", encoding="utf-8")
    words = ["quantize", str(SHAPES.bundle), str(out), "--to", "int8-weights", "--for", "tensorrt"]
    more = ["--calibrate", str(prompts), "--steps", "2", "--height", "64", "--width", "128", "--gate", "0.2,0.3"]
    assert main([*words, *more]) == 0
    said = capsys.readouterr().out
    assert f"{out}: int8-weights for tensorrt\n96 of 106 layers are quantized\n" in said
    assert not (out / "quantization.safetensors").exists()
    manifest = json.loads((out / "bundle.json").read_text())["recipe"]["quantization"]
    assert (manifest["prompts"], manifest["gate_worst"], manifest["calibration"]) == (4, 0.3, None)
    assert main([*words, "--overwrite", "--gate", "much"]) == 1
    assert "expected two numbers, such as 0.10,0.15" in capsys.readouterr().err
    prompts.write_bytes(b"\xff\xfe caf\xe9")
    assert main([*words, "--overwrite", "--calibrate", str(prompts)]) == 1
    assert "is not a text in UTF-8" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "to", "target"),
    [
        ("sdxl-fp32", "int8", "onnxruntime"),
        ("sd2-fp16", "fp8", "tensorrt"),
        ("sd1-bf16", "int8", "tensorrt"),
        ("sd1-inpaint-fp32", "int8", "onnxruntime"),
        ("lcm-fp32", "int8", "onnxruntime"),
    ],
)
@pytest.mark.slow
def test_families(exported: Callable[[str], Exported], name: str, to: str, target: str, tmp_path: Path) -> None:
    source = Bundle.open(exported(name).bundle)
    made = quantize_bundle(source.path, tmp_path / "out", replace(QUICK, to=to, target=target)).bundle
    recipe = made.manifest.recipe.quantization
    assert recipe is not None
    assert 1e-4 < recipe.error_mean < QUICK.gate_mean
    rule = {layer.name for layer in chosen(find_layers(ir.load(source.path / "denoise.onnx").graph), 3.0)}
    assert quantized_weights(made.path / "denoise.onnx") == rule
