"""Quantized layers compute what the formulas say: against numpy, layer by layer."""

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from latentrt.export.quantize.forms import FORMS, form_of
from latentrt.export.quantize.insert import insert
from latentrt.export.quantize.layers import find_layers
from latentrt.runtime import InputError

Array = NDArray[Any]
RNG = np.random.default_rng(41)
CONV = RNG.standard_normal((12, 6, 3, 3)).astype(np.float32) * np.geomspace(0.1, 9, 12)[:, None, None, None]
MATMUL = RNG.standard_normal((20, 14)).astype(np.float32) * np.geomspace(0.05, 3, 14)
BIAS = RNG.standard_normal(12).astype(np.float32)


def model_of(op: str, weight: Array, x: Array, y: tuple[int, ...], **attributes: Any) -> ir.Model:
    """A layer alone: x -> y -> out."""
    inputs = ["x", "w", *(["b"] if op == "Conv" else [])]
    nodes = [helper.make_node(op, inputs, ["y"], **attributes), helper.make_node("Identity", ["y"], ["out"])]
    initializers = [numpy_helper.from_array(weight.astype(np.float32), "w"), numpy_helper.from_array(BIAS, "b")]
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, y)],
        initializers[: 1 + (op == "Conv")],
    )
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11))


def run(model: ir.Model, x: Array) -> Array:
    """Without optimizations, so that no kernel takes other ways of rounding."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    result: Array = session.run(None, {"x": x})[0]
    return result


def rounded(value: Array, dtype: str, low: float, high: float) -> Array:
    """What an activation becomes, in one scale."""
    if dtype == "UINT8":
        low, high = min(low, 0), max(high, 0)
        scale = np.float32((high - low) / 255)
        zero = round(-low / scale)
        return (np.clip(np.round(value / scale) + zero, 0, 255) - zero) * scale
    most = max(abs(low), abs(high))
    if dtype == "INT8":
        scale = np.float32(most / 127)
        return np.clip(np.round(value / scale), -128, 127) * scale
    scale = np.float32(most / 448)
    return np.clip(value / scale, -448, 448).astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * scale


def rounded_weight(weight: Array, dtype: str, axis: int | None) -> Array:
    others = tuple(i for i in range(weight.ndim) if i != axis)
    most = np.abs(weight).max(axis=None if axis is None else others, keepdims=True)
    if dtype == "INT8":
        return np.round(weight / (most / 127)) * (most / 127)
    return (weight / (most / 448)).astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * (most / 448)


def convolved(x: Array, weight: Array) -> Array:
    """(1, 6, h, w) by (12, 6, 3, 3), without padding."""
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(2, 3))
    return np.einsum("nchwij,ocij->nohw", windows.astype(np.float64), weight.astype(np.float64))


@pytest.mark.parametrize(("to", "target"), FORMS)
def test_convolutions(to: str, target: str) -> None:
    form = form_of(to, target)
    x = RNG.uniform(-0.7, 3.1, (1, 6, 9, 7)).astype(np.float32)
    ranges = {"x": (-0.7, 2.9), "y": (-30.0, 25.0)}  # some values are outside
    model = model_of("Conv", CONV, x, (1, 12, 7, 5), kernel_shape=[3, 3])
    insert(model, find_layers(model.graph), form, ranges)
    weight = rounded_weight(CONV, form.weight, 0 if form.channels_of_convolutions else None)
    activation = x if form.activation is None else rounded(x, form.activation, *ranges["x"])
    expected = convolved(activation, weight) + BIAS[:, None, None]
    if form.outputs:
        assert form.activation is not None
        expected = rounded(expected, form.activation, *ranges["y"])
        step = 55 / 255
        assert np.abs(run(model, x) - expected).max() < 1.01 * step  # a value between two steps may take either
        assert np.mean(np.abs(run(model, x) - expected) > 0.01) < 0.02
        return
    np.testing.assert_allclose(run(model, x), expected, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize(("to", "target"), FORMS)
@pytest.mark.parametrize("op", ["MatMul", "Gemm"])
def test_products(to: str, target: str, op: str) -> None:
    form = form_of(to, target)
    x = RNG.uniform(-4, 1.5, (33, 20)).astype(np.float32)
    stored = MATMUL.T.copy() if op == "Gemm" else MATMUL
    model = model_of(op, stored, x, (33, 14), **({"transB": 1} if op == "Gemm" else {}))
    insert(model, find_layers(model.graph), form, {"x": (-4.0, 1.2)})
    weight = rounded_weight(MATMUL.astype(np.float32), form.weight, 1)
    activation = x if form.activation is None else rounded(x, form.activation, -4.0, 1.2)
    np.testing.assert_allclose(run(model, x), activation @ weight, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("dtype", [ir.DataType.FLOAT16, ir.DataType.BFLOAT16])
def test_scales_have_the_type_of_the_layer(dtype: ir.DataType) -> None:
    """Weights are multiples of the scale as it is stored, not of the one before rounding."""
    x = RNG.uniform(-1, 1, (5, 20)).astype(np.float32)
    model = model_of("MatMul", MATMUL, x, (5, 14))
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.dtype = dtype
    weight = model.graph.initializers["w"]
    weight.const_value = ir.Tensor(MATMUL.astype(dtype.numpy()), dtype=dtype, name="w")
    weight.dtype = dtype
    insert(model, find_layers(model.graph), form_of("int8", "tensorrt"), {"x": (-1.0, 1.0)})
    scale = model.graph.initializers["w.scale"].const_value
    quantized = model.graph.initializers["w.quantized"].const_value
    assert scale is not None
    assert quantized is not None
    assert scale.dtype == dtype
    back = quantized.numpy().astype(np.float32) * scale.numpy().astype(np.float32)
    assert np.abs(back - MATMUL).max() <= np.abs(MATMUL).max() / 127 * 0.6


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("dtype", [ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16])
@pytest.mark.parametrize(("to", "target"), [("int8", "openvino"), ("int8", "tensorrt"), ("fp8", "tensorrt")])
def test_what_is_always_zero_has_a_scale(to: str, target: str, dtype: ir.DataType) -> None:
    """A scale that is 0 in float16 would make NaN of it."""
    model = model_of("MatMul", MATMUL, np.zeros((5, 20), np.float32), (5, 14))
    weight, zeros = model.graph.initializers["w"], MATMUL.copy()
    zeros[:, 3] = 0
    weight.const_value, weight.dtype = ir.Tensor(zeros.astype(dtype.numpy()), dtype=dtype, name="w"), dtype
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.dtype = dtype
    insert(model, find_layers(model.graph), form_of(to, target), {"x": (0.0, 0.0)})
    for name in ("w.scale", "x.scale"):
        scale = model.graph.initializers[name].const_value
        assert scale is not None
        assert (scale.numpy().astype(np.float32) > 0).all()
    quantized = model.graph.initializers["w.quantized"].const_value
    assert quantized is not None
    assert not quantized.numpy()[:, 3].astype(np.float32).any()


def test_an_activation_is_quantized_once() -> None:
    x = RNG.uniform(-1, 1, (5, 20)).astype(np.float32)
    model = model_of("MatMul", MATMUL, x, (5, 14))
    first = next(iter(model.graph))
    second = ir.node("MatMul", [first.inputs[0], first.inputs[1]], name="again")
    second.outputs[0].name, second.outputs[0].dtype = "z", ir.DataType.FLOAT
    second.outputs[0].shape = first.outputs[0].shape
    model.graph.append(second)
    model.graph.outputs.append(second.outputs[0])
    insert(model, find_layers(model.graph), form_of("int8", "openvino"), {"x": (-1.0, 1.0)})
    assert [node.op_type for node in model.graph].count("QuantizeLinear") == 1


def test_fp8_is_for_tensorrt() -> None:
    with pytest.raises(InputError, match="fp8 for openvino: no such kernels; --to fp8 is for tensorrt"):
        form_of("fp8", "openvino")
