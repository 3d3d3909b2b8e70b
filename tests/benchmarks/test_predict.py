"""The model of a GPU's time: its layers against counted operations, its times against closed forms and publications."""

import json
import math
import statistics
import sys
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
from diffusers import UNet2DConditionModel
from onnx import TensorProto, helper
from support.exports import SHAPES
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common.onnx_cost import bundle_costs
from benchmarks.predict import __main__ as command
from benchmarks.predict.gpus import GPUS, measured
from benchmarks.predict.layers import Layer, graphs_of, layers_of
from benchmarks.predict.model import BANDWIDTH, KERNEL, layer_seconds, seconds
from benchmarks.predict.published import PUBLISHED, read_layers
from latentrt.export.checkpoint.public_configs import PUBLIC_CONFIGS
from latentrt.runtime import Bundle

GPU = replace(GPUS["a100"], multiprocessors=10, half=100.0, bandwidth=1000.0, share=1.0)


def product(rows: int, columns: int, depth: int, *, products: int = 1, moved: int = 0, kind: str = "matmul") -> Layer:
    return Layer(kind, products, rows, columns, depth, moved, 0, 16)


@pytest.mark.parametrize(("height", "width", "batch", "groups"), [(128, 128, 1, 2), (192, 64, 3, 1)])
def test_the_layers_have_all_operations_of_a_bundle(height: int, width: int, batch: int, groups: int) -> None:
    layers = graphs_of(SHAPES.bundle, height, width, batch, groups)
    sizes = {"B": batch, "G": groups, "h": height // 8, "w": width // 8, "S": 77}
    costs = bundle_costs(Bundle.open(SHAPES.bundle), sizes)
    assert layers.keys() == {"text_encoder", "denoise", "vae_decoder"}
    for name, found in layers.items():
        assert sum(layer.flops * count for layer, count in found.items()) == sum(costs[name].flops.values())


def test_attention_reads_what_is_cast_for_it(tmp_path: Path) -> None:
    names = ("query", "key", "value")
    nodes = [helper.make_node("Cast", [name], [f"{name}.float"], to=TensorProto.FLOAT) for name in names]
    nodes.append(helper.make_node("Attention", [f"{name}.float" for name in names], ["out"]))
    shape = [2, 3, "h*w", 40]
    values = [helper.make_tensor_value_info(f"{name}.float", TensorProto.FLOAT, shape) for name in names]
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT16, shape) for name in names]
    output = helper.make_tensor_value_info("out", TensorProto.FLOAT, shape)
    onnx.save(
        helper.make_model(helper.make_graph(nodes, "g", inputs, [output], value_info=values)), tmp_path / "a.onnx"
    )
    (found,) = layers_of(tmp_path / "a.onnx", {"h": 5, "w": 7})
    moved = 2 * 3 * 35 * 40 * (3 * 2 + 4)  # operands of two bytes, and the result as it is
    assert found == Layer("attention", 6, 35, 35, 40, activations=moved, weights=0, bits=16)
    with pytest.raises(ValueError, match="known symbols"):
        layers_of(tmp_path / "a.onnx", {"h": 5})


def test_what_large_products_take_is_their_operations() -> None:
    layer = product(256 * 100, 128 * 10, 4096)  # 1000 tiles: 100 whole waves
    assert layer_seconds(layer, GPU) == pytest.approx(2 * layer.rows * layer.columns * 4096 / 100e12 + KERNEL)


def test_a_last_wave_takes_as_long_as_a_whole_one() -> None:
    # 11 tiles of the largest size on 10 multiprocessors; no part of the depth is worth a kernel of its own.
    layer = product(256 * 11, 128, 256)
    whole = layer_seconds(product(256 * 10, 128, 256), GPU) - KERNEL
    assert whole * 1.1 < layer_seconds(layer, GPU) - KERNEL <= whole * 2


def test_small_layers_take_as_long_as_their_bytes() -> None:
    layer = product(64, 64, 64, moved=75_000_000)
    assert layer_seconds(layer, GPU) == pytest.approx(75e6 / (BANDWIDTH * 1e12) + KERNEL)
    assert seconds({layer: 3, replace(layer, kind="norm", products=0): 2}, GPU) == 5 * layer_seconds(layer, GPU)


def test_heads_take_the_time_of_the_kernel_that_is_wide_enough() -> None:
    times = [layer_seconds(product(1280, 1280, d, products=2, kind="attention"), GPU) for d in (40, 64, 65)]
    assert times[0] == pytest.approx(times[1])
    assert times[2] - KERNEL == pytest.approx((times[1] - KERNEL) * 96 / 64)


def test_it_comes_near_to_published_figures() -> None:
    layers = read_layers()
    errors = {figure: math.log(figure.predicted(layers) / figure.milliseconds) for figure in PUBLISHED}
    assert max(map(abs, errors.values())) < 0.2
    held_out = [abs(error) for figure, error in errors.items() if not figure.fitted]
    assert len(held_out) >= 15
    assert statistics.mean(held_out) < 0.1


@pytest.mark.parametrize(("workload", "family"), [("sd15 512 1 2", "sd1"), ("sdxl 1024 4 1", "sdxl")])
def test_recorded_layers_have_the_operations_of_the_public_models(workload: str, family: str) -> None:
    _, pixels, batch, groups = workload.split()
    rows, side = int(batch) * int(groups), int(pixels) // 8
    config = {k: v for k, v in PUBLIC_CONFIGS[family]["unet"].items() if not k.startswith("_")}
    with torch.device("meta"):
        unet = UNet2DConditionModel(**config)
        inputs = (
            torch.empty(rows, 4, side, side),
            torch.empty(rows),
            torch.empty(rows, 77, unet.config.cross_attention_dim),
        )
        more = {"text_embeds": torch.empty(rows, 1280), "time_ids": torch.empty(rows, 6)} if family == "sdxl" else None
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        unet(*inputs, added_cond_kwargs=more)
    denoise = read_layers()[workload]["denoise"]
    counted = sum(layer.flops * count for layer, count in denoise.items())
    # The graphs `time` and `context` have the rest, once a picture.
    assert 0.985 < counted / counter.get_total_flops() <= 1
    assert {layer.bits for layer in denoise if layer.kind == "attention"} == {16}


def test_measured_rates_take_the_place_of_published_ones(tmp_path: Path) -> None:
    rates = {"float16": 600e12, "float32": 5e13, "tf32": 300e12, "bytes": 2.5e12}
    parts = [{"part": "device", "report": None}, {"part": "ceilings", "report": {"figures": rates}}]
    (tmp_path / "summary.json").write_text(json.dumps({"parts": parts}))
    gpu = measured(GPUS["h100"], tmp_path / "summary.json")
    assert (gpu.half, gpu.tf32, gpu.bandwidth, gpu.multiprocessors) == (600, 300, 2500, 132)
    layer = product(256 * 132, 128 * 10, 8192)
    assert layer_seconds(layer, gpu) == pytest.approx(layer.flops / (0.75 * 600e12) + KERNEL)
    (tmp_path / "summary.json").write_text(json.dumps({"parts": parts[:1]}))
    with pytest.raises(ValueError, match="has no rates"):
        measured(GPUS["h100"], tmp_path / "summary.json")


def test_the_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        sys, "argv", ["predict", str(SHAPES.bundle), "--gpu", "h100", "--gpu", "4090", "--steps", "7", "--batch", "3"]
    )
    command.main()
    result = json.loads(capsys.readouterr().out.splitlines()[-1])["results"]
    assert result["gpus"].keys() == {"h100", "4090"}
    found = result["gpus"]["4090"]
    assert found["total_ms"] == pytest.approx(sum(found["ms"].values()) + 6 * found["ms"]["denoise"])
    assert found["images_per_second"] == pytest.approx(3000 / found["total_ms"], rel=1e-3)
    monkeypatch.setattr(sys, "argv", ["predict"])
    with pytest.raises(SystemExit):
        command.main()
    assert "expected a BUNDLE" in capsys.readouterr().err
