"""Observed ranges are those of the activations; smoothed and switched graphs compute what they should."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray
from support.exports import SHAPES

from latentrt.export.graphs.onnx_files import load_in_full
from latentrt.export.quantize.forms import form_of
from latentrt.export.quantize.insert import Writer, insert
from latentrt.export.quantize.layers import Layer, chosen, find_layers
from latentrt.export.quantize.observe import CHANNELS, RANGES, Calibration, observe, read_calibration
from latentrt.export.quantize.ranking import ONLY, needed_in_float, with_switches
from latentrt.export.quantize.smooth import maker, smooth
from latentrt.runtime import InputError
from latentrt.runtime.bundle import Bundle, shape_at
from latentrt.runtime.goldens import relative_error
from latentrt.runtime.scheduler import REGISTERS

DENOISE = SHAPES.bundle / "denoise.onnx"
Array = NDArray[Any]


def feeds(seed: int, size: tuple[int, int] = (8, 12)) -> dict[str, Array]:
    """Inputs of `denoise` whose next state has the guided prediction in row 0."""
    rng = np.random.default_rng(seed)
    sizes = {"B": 1, "G": 2, "h": size[0], "w": size[1], "S": 77}
    spec = Bundle.open(SHAPES.bundle).graph("denoise")
    inputs = {v.name: rng.standard_normal(shape_at(v, sizes)).astype(np.float32) for v in spec.inputs}
    inputs["coefficients"][:], inputs["guidance_rescale"][:] = 0, 0
    inputs["coefficients"][0, 0, REGISTERS] = 1
    inputs["guidance"][:] = [-2, 3]
    return inputs


def run(model: ir.Model, inputs: dict[str, Array], *names: str, more: dict[str, Array] | None = None) -> list[Array]:
    content = ir.to_proto(ir.external_data.load_to_model(model)).SerializeToString()
    options = onnxruntime.SessionOptions()
    # With optimizations, weights of 8 bits alone make ONNX Runtime round activations as well.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    result: list[Array] = session.run(list(names), {**inputs, **(more or {})})
    return result


def prediction(model: ir.Model, inputs: dict[str, Array], more: dict[str, Array] | None = None) -> Array:
    return run(model, inputs, "next_state", more=more)[0][0, 0]


def ranges_of(model: ir.Model, inputs: dict[str, Array]) -> tuple[dict[str, tuple[float, float]], dict[str, Array]]:
    watched = observe(model, find_layers(model.graph))
    calibration = Calibration("source", (), {"denoise": watched})
    ranges, channels = run(model, inputs, RANGES, CHANNELS)
    calibration.note("denoise", {RANGES: ranges, CHANNELS: channels})
    return calibration.of("denoise"), calibration.channel_maxima("denoise")


def test_ranges_are_those_of_the_tensors() -> None:
    inputs = feeds(1)
    ranges, maxima = ranges_of(ir.load(DENOISE), inputs)
    model = ir.load(DENOISE)
    layers = find_layers(model.graph)
    watched = {str(v.name): v for layer in layers for v in (layer.node.inputs[0], *layer.node.outputs) if v is not None}
    model.graph.outputs.extend(value for value in watched.values())
    tensors = dict(zip(watched, run(model, inputs, *watched), strict=True))
    assert {str(layer.node.inputs[0].name) for layer in layers if layer.node.inputs[0] is not None} <= ranges.keys()
    for name, (low, high) in ranges.items():
        assert (low, high) == pytest.approx((tensors[name].min(), tensors[name].max()), rel=1e-4, abs=1e-5), name
    assert len(maxima) > 20
    for name, found in maxima.items():
        expected = np.abs(tensors[name]).max(axis=(0, 1))
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5, err_msg=name)


def test_a_calibration_joins_runs_and_comes_back(tmp_path: Path) -> None:
    watched = observe(ir.load(DENOISE), find_layers(ir.load(DENOISE).graph))
    rng, file = np.random.default_rng(3), tmp_path / "some.safetensors"
    runs = rng.standard_normal((4, len(watched.activations), 2)).astype(np.float32)
    channels = rng.uniform(0, 5, (4, sum(watched.channels.values()))).astype(np.float32)
    calibration = Calibration("the source", ("a cat", "ein Hund, größer"), {"denoise": watched})
    for one, more in zip(runs, channels, strict=True):
        calibration.note("denoise", {RANGES: one, CHANNELS: more})
        calibration.note("text_encoder", {RANGES: one})  # not watched
    calibration.save(file)
    again = read_calibration(file)
    assert (again.source, again.prompts) == ("the source", ("a cat", "ein Hund, größer"))
    assert again.of("denoise") == calibration.of("denoise")
    low, high = again.of("denoise")[watched.activations[2]]
    assert (low, high) == (runs[:, 2, 0].min(), runs[:, 2, 1].max())
    first = next(iter(watched.channels))
    np.testing.assert_array_equal(
        again.channel_maxima("denoise")[first], channels[:, : watched.channels[first]].max(axis=0)
    )
    with pytest.raises(InputError, match="holds no calibration"):
        read_calibration(SHAPES.bundle / "golden" / "golden.safetensors")


@pytest.mark.parametrize("share", [0.5, 0.8])
def test_smoothed_graphs_compute_the_same(share: float) -> None:
    inputs = feeds(2)
    ranges, _ = ranges_of(ir.load(DENOISE), inputs)
    model, rng = load_in_full(DENOISE), np.random.default_rng(4)
    layers = chosen(find_layers(model.graph), 3.0)
    makers = [layer for layer in layers if maker(layer) is not None]
    # Norms before attention and feed-forward layers, and the linear halves of gated ones: 7 blocks, 4 of each.
    assert len({layer.node.inputs[0] for layer in makers}) == 4 * 7
    maxima = {
        str(layer.node.inputs[0].name): np.exp(rng.normal(0, 2, layer.shape[0])).astype(np.float32)
        for layer in makers
        if layer.node.inputs[0] is not None
    }
    smooth(model.graph, layers, maxima, ranges, share)
    before = prediction(ir.load(DENOISE), inputs)
    assert relative_error(prediction(model, inputs), before) < 1e-4


def test_smoothing_evens_out_channels() -> None:
    """The ranges that it returns hold those that the smoothed graph has."""
    inputs = feeds(5)
    ranges, maxima = ranges_of(ir.load(DENOISE), inputs)
    model = load_in_full(DENOISE)
    new = smooth(model.graph, chosen(find_layers(model.graph), 3.0), maxima, ranges, 0.8)
    found, later = ranges_of(model, inputs)
    for name in maxima:
        assert new[name][0] <= found[name][0] + 1e-4
        assert new[name][1] >= found[name][1] - 1e-4
    spread = [np.mean([m.max() / np.median(m) for m in some.values()]) for some in (maxima, later)]
    assert spread[1] < 0.8 * spread[0]


def test_activations_that_others_read_are_not_smoothed() -> None:
    inputs = feeds(6)
    ranges, maxima = ranges_of(ir.load(DENOISE), inputs)
    model = load_in_full(DENOISE)
    layers = [layer for layer in chosen(find_layers(model.graph), 3.0) if ".to_k." not in layer.name]
    smooth(model.graph, layers, maxima, ranges, 0.8)
    assert relative_error(prediction(model, inputs), prediction(ir.load(DENOISE), inputs)) < 1e-4


def _switched(to: str, target: str, inputs: dict[str, Array]) -> tuple[ir.Model, list[Layer], dict[str, Any]]:
    ranges, _ = ranges_of(ir.load(DENOISE), inputs)
    model = load_in_full(DENOISE)
    layers = chosen(find_layers(model.graph), 3.0)
    with_switches(model, layers, Writer(model.graph, form_of(to, target), ranges))
    return model, layers, ranges


@pytest.mark.parametrize(("to", "target"), [("int8", "openvino"), ("fp8", "tensorrt"), ("int8-weights", "tensorrt")])
def test_a_switch_quantizes_one_layer(to: str, target: str) -> None:
    inputs = feeds(7)
    model, layers, ranges = _switched(to, target, inputs)
    base = prediction(ir.load(DENOISE), inputs)
    assert relative_error(prediction(model, inputs, {ONLY: np.array([-1])}), base) < 1e-6
    for index in (3, len(layers) - 1):
        alone = load_in_full(DENOISE)
        one = chosen(find_layers(alone.graph), 3.0)[index : index + 1]
        insert(alone, one, form_of(to, target), ranges)
        expected, found = prediction(alone, inputs), prediction(model, inputs, {ONLY: np.array([index])})
        assert relative_error(expected, base) > 1e-4
        assert relative_error(found, expected) < 0.05 * relative_error(expected, base)


def test_how_many_layers_must_stay_in_float() -> None:
    squares = {"a": 3.0, "b": 4.0, "c": 12.0}  # together 13
    assert needed_in_float(squares, 13.0, 13.5) == 0
    assert needed_in_float(squares, 13.0, 5.01) == 1
    assert needed_in_float(squares, 13.0, 3.01) == 2
    assert needed_in_float(squares, 26.0, 6.01) == 2
    assert needed_in_float(squares, 13.0, 0.5) == 3
