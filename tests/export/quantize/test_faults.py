"""The gate sees faults of a quantization, each alone; the same bundle without the fault passes."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from support.exports import SHAPES

from latentrt.export.quantize import QuantizeOptions, quantize_bundle
from latentrt.export.quantize import quantize as module
from latentrt.export.quantize.insert import insert
from latentrt.export.quantize.layers import Layer
from latentrt.export.quantize.observe import read_calibration
from latentrt.runtime.bundle import Bundle
from latentrt.runtime.errors import ExportError

PROMPTS = (
    "a small green star and a red heart on a yellow background",
    "a large blue circle on a white background",
    "a purple square on a black background",
    "a white diamond left of an orange triangle on a green background",
)
INT8 = QuantizeOptions(to="int8", target="onnxruntime", prompts=PROMPTS, steps=5, keep_float=20)
OUTLIER = 128.0  # a power of two, so that nothing else changes
# Changes a quantized graph, in place.
Fault = Callable[[ir.Graph], object]


def no_fault(_: ir.Graph) -> None:
    """Nothing."""


@pytest.fixture(scope="module", autouse=True)
def _without_openvino() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "openvino_is_installed", lambda: False)
        yield


@dataclass(frozen=True)
class Right:
    """A quantization without a fault: its options with the calibration, and what its layers cost, the most first."""

    options: QuantizeOptions
    costs: dict[str, float]


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> Right:
    """It passes the default gate."""
    bundle = quantize_bundle(SHAPES.bundle, tmp_path_factory.mktemp("right") / "int8", INT8).bundle
    known = read_calibration(bundle.path / "quantization.safetensors")
    rows = [row for row in bundle.read_json("quantization.json")["layers"] if row["cost"] is not None]
    costs = {row["layer"]: row["cost"] for row in sorted(rows, key=lambda row: -row["cost"])}
    return Right(replace(INT8, calibration=known), costs)


@pytest.fixture
def quantize(right: Right, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Bundle]:
    """Quantize with a fault, with the costs that are known."""
    monkeypatch.setattr(module._Quantizer, "_rank", lambda self, _: self.costs.update(right.costs))

    def run(options: QuantizeOptions, fault: Fault = no_fault, before: Fault = no_fault) -> Bundle:
        def faulty(model: ir.Model, layers: Sequence[Layer], *form: Any) -> None:
            before(model.graph)
            insert(model, layers, *form)
            fault(model.graph)

        monkeypatch.setattr(module, "insert", faulty)
        return quantize_bundle(SHAPES.bundle, tmp_path / "out", options).bundle

    return run


def value_of(graph: ir.Graph, name: str) -> NDArray[Any]:
    tensor = graph.initializers[name].const_value
    assert tensor is not None
    return tensor.numpy()


def set_value(graph: ir.Graph, name: str, array: NDArray[Any]) -> None:
    graph.initializers[name].const_value = ir.tensor(array.astype(value_of(graph, name).dtype), name=name)


def quantized_layers(right: Right) -> list[str]:
    return [*right.costs][INT8.keep_float :]


def swap(graph: ir.Graph, one: str, other: str) -> None:
    arrays = [value_of(graph, f"{name}.scale") for name in (one, other)]
    for name, array in zip((other, one), arrays, strict=True):
        set_value(graph, f"{name}.scale", array)


@pytest.mark.slow
@pytest.mark.parametrize("place", [0, 15, 40])
def test_a_scale_four_times_too_large(quantize: Callable[..., Bundle], right: Right, place: int) -> None:
    name = f"{quantized_layers(right)[place]}.scale"
    with pytest.raises(ExportError, match="below the gate"):
        quantize(right.options, lambda graph: set_value(graph, name, 4 * value_of(graph, name)))


@pytest.mark.slow
def test_the_scales_of_two_layers_swapped(quantize: Callable[..., Bundle], right: Right) -> None:
    first, *others = [name for name in quantized_layers(right) if name.startswith("unet.up_blocks.2")]

    def fault(graph: ir.Graph) -> None:
        sizes = {name: value_of(graph, f"{name}.scale").shape for name in (first, *others)}
        swap(graph, first, next(name for name in others if sizes[name] == sizes[first]))

    with pytest.raises(ExportError, match="below the gate"):
        quantize(right.options, fault)


@pytest.mark.slow
def test_a_calibration_on_noise(quantize: Callable[..., Bundle], right: Right, tmp_path: Path) -> None:
    """The ranges of the first call alone, whose input is noise."""
    loose = replace(INT8, steps=1, gate_mean=100, gate_worst=100)
    noise = quantize_bundle(SHAPES.bundle, tmp_path / "noise", loose).bundle
    known = read_calibration(noise.path / "quantization.safetensors")
    with pytest.raises(ExportError, match="below the gate"):
        quantize(replace(right.options, calibration=known))


def with_outlier(graph: ir.Graph, values: str) -> None:
    """One output channel of the values is larger than all others, as in many trained models; the model is the same."""
    out = values.replace("to_v", "to_out.0")
    array, back = value_of(graph, values).copy(), value_of(graph, out).copy()
    array[:, 3] *= OUTLIER
    back[3] /= OUTLIER
    set_value(graph, values, array)
    set_value(graph, out, back)


def one_scale(graph: ir.Graph, name: str) -> None:
    """Quantize a layer anew, with one scale for all channels."""
    scale = value_of(graph, f"{name}.scale")
    full = value_of(graph, f"{name}.quantized") * scale
    set_value(graph, f"{name}.quantized", np.round(full / scale.max()))
    set_value(graph, f"{name}.scale", np.full_like(scale, scale.max()))


@pytest.mark.slow
def test_one_layer_per_tensor(quantize: Callable[..., Bundle], right: Right) -> None:
    options = replace(right.options, to="int8-weights")
    layer = next(name for name in quantized_layers(right) if name.endswith("attn1.to_v.weight.transposed"))
    quantize(options, before=lambda graph: with_outlier(graph, layer))
    with pytest.raises(ExportError, match="below the gate"):
        quantize(
            replace(options, overwrite=True),
            lambda graph: one_scale(graph, layer),
            lambda graph: with_outlier(graph, layer),
        )
