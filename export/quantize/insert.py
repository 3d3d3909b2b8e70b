"""Write layers with QuantizeLinear and DequantizeLinear, in place. Knows graphs and scales, and no backend."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import common as passes
from onnx_ir.tape import Tape

from .forms import Form
from .layers import Layer

# Name of an activation -> its least and largest value.
Ranges = Mapping[str, tuple[float, float]]
# dtype -> numpy dtype, and the largest value that it holds of both signs.
_TYPES = {
    ir.DataType.INT8: (np.int8, 127.0),
    ir.DataType.UINT8: (np.uint8, 255.0),
    ir.DataType.FLOAT8E4M3FN: (ml_dtypes.float8_e4m3fn, 448.0),
}
_LEAST = 1e-7  # of a range: what is always 0 needs a scale, too


def insert(model: ir.Model, layers: Iterable[Layer], form: Form, ranges: Ranges) -> None:
    """Quantize layers of a model, in place; weights take the dtype of the form, with a scale beside them.

    Activations that several layers read are quantized once. `ranges` has all activations that the form quantizes.
    """
    writer = Writer(model.graph, form, ranges)
    for layer in layers:
        writer.quantize(layer)
    passes.RemoveUnusedNodesPass()(model)


@dataclass(eq=False)
class Writer:
    """Writes the layers of one graph."""

    graph: ir.Graph
    form: Form
    ranges: Ranges
    _activations: dict[ir.Value, tuple[ir.Value, NDArray[np.float32]]] = field(default_factory=dict)

    def quantize(self, layer: Layer) -> None:
        """Quantize the inputs of a layer, and its bias and output where the form does."""
        node, activation = layer.node, layer.node.inputs[0]
        assert activation is not None
        nodes, weight, scale = self.weight(layer)
        node.replace_input_with(1, weight)
        self.graph.insert_before(node, nodes)
        if self.form.activation is None:
            return
        if activation not in self._activations:
            nodes, value, step = self.activation(activation)
            self._activations[activation] = (value, step)
            # Before the first layer that reads it, which is the first in the graph's order.
            self.graph.insert_before(node, nodes)
        value, step = self._activations[activation]
        node.replace_input_with(0, value)
        if self.form.outputs and node.op_type == "Conv":
            self._bias(node, step * scale)
            self._output(node)

    def weight(self, layer: Layer) -> tuple[list[ir.Node], ir.Value, NDArray[np.float32]]:
        """Nodes, the dequantized weight, and its scales: (channels,) or ()."""
        value, axis = layer.weight, layer.channels
        assert value.const_value is not None
        full = value.const_value.numpy().astype(np.float32)
        dtype = ir.DataType[self.form.weight]
        by_channel = self.form.channels_of_convolutions or layer.node.op_type != "Conv"
        others = tuple(i for i in range(full.ndim) if i != axis or not by_channel)
        most = _TYPES[dtype][1]
        float_type = _float_type(layer)
        scale = _rounded(np.maximum(np.abs(full).max(axis=others), _LEAST) / most, float_type)
        spread = scale.reshape([-1 if i == axis and by_channel else 1 for i in range(full.ndim)])
        name = str(value.name)
        quantized = self._constant(f"{name}.quantized", _quantized(full / spread, dtype), dtype)
        return self._dequantized(quantized, name, scale, float_type, axis if by_channel else None)

    def activation(self, value: ir.Value) -> tuple[list[ir.Node], ir.Value, NDArray[np.float32]]:
        """Nodes, the value after QuantizeLinear and DequantizeLinear, and its scale ()."""
        assert self.form.activation is not None
        dtype, name = ir.DataType[self.form.activation], str(value.name)
        low, high = self.ranges[name]
        numpy_type, most = _TYPES[dtype]
        zero = 0
        if dtype == ir.DataType.UINT8:
            low, high = min(low, 0.0), max(high, 0.0)
            step = max(high - low, _LEAST) / most
            zero = int(np.clip(round(-low / step), 0, 255))
        else:
            step = max(abs(low), abs(high), _LEAST) / most
        float_type = value.dtype or ir.DataType.FLOAT
        scale = _rounded(np.asarray(step, np.float32), float_type)
        scale_value = self._scale(f"{name}.scale", scale, float_type)
        point = self._constant(f"{name}.zero_point", np.asarray(zero).astype(numpy_type), dtype)
        tape = Tape()
        quantized = _typed(tape.op("QuantizeLinear", [value, scale_value, point]), dtype, value.shape)
        back = _typed(tape.op("DequantizeLinear", [quantized, scale_value, point]), float_type, value.shape)
        quantized.name, back.name = f"{name}.quantized", f"{name}.dequantized"
        return [*tape.nodes], back, scale

    def _bias(self, node: ir.Node, scale: NDArray[np.float32]) -> None:
        """An int32 bias with the scale of the sums, as kernels of integers add it."""
        if len(node.inputs) < 3 or (bias := node.inputs[2]) is None or bias.const_value is None:
            return
        scale = np.broadcast_to(scale, bias.const_value.shape.numpy()).astype(np.float32)
        whole = np.round(bias.const_value.numpy().astype(np.float64) / scale)
        limit = np.iinfo(np.int32)
        quantized = np.clip(whole, limit.min, limit.max).astype(np.int32)
        name = str(bias.name)
        value = self._constant(f"{name}.quantized", quantized, ir.DataType.INT32)
        nodes, back, _ = self._dequantized(value, name, scale, bias.dtype or ir.DataType.FLOAT, 0)
        self.graph.insert_before(node, nodes)
        node.replace_input_with(2, back)

    def _output(self, node: ir.Node) -> None:
        value = node.outputs[0]
        users = [*value.uses()]
        nodes, back, _ = self.activation(value)
        for user, index in users:
            user.replace_input_with(index, back)
        self.graph.insert_after(node, nodes)

    def _dequantized(
        self, value: ir.Value, name: str, scale: NDArray[np.float32], float_type: ir.DataType, axis: int | None
    ) -> tuple[list[ir.Node], ir.Value, NDArray[np.float32]]:
        tape = Tape()
        inputs = [value, self._scale(f"{name}.scale", scale, float_type)]
        attributes = {} if axis is None else {"axis": axis}
        back = _typed(tape.op("DequantizeLinear", inputs, attributes), float_type, value.shape)
        back.name = f"{name}.dequantized"
        return [*tape.nodes], back, scale

    def _scale(self, name: str, scale: NDArray[np.float32], float_type: ir.DataType) -> ir.Value:
        return self._constant(name, scale.astype(float_type.numpy()), float_type)

    def _constant(self, name: str, array: NDArray[np.generic], dtype: ir.DataType) -> ir.Value:
        if name in self.graph.initializers:
            return self.graph.initializers[name]
        shape = ir.Shape(array.shape)
        tensor = ir.Tensor(array, dtype=dtype, shape=shape, name=name)
        value = ir.Value(name=name, type=ir.TensorType(dtype), shape=shape, const_value=tensor)
        self.graph.register_initializer(value)
        return value


def _quantized(steps: NDArray[np.float32], dtype: ir.DataType) -> NDArray[np.generic]:
    """Multiples of the scale in the dtype, rounded to nearest, halves to even."""
    numpy_type, most = _TYPES[dtype]
    clipped = np.clip(steps, -most, most)
    return clipped.astype(numpy_type) if dtype == ir.DataType.FLOAT8E4M3FN else np.round(clipped).astype(numpy_type)


def _rounded(scale: NDArray[np.float32], float_type: ir.DataType) -> NDArray[np.float32]:
    """The scale as it is stored, so that weights are multiples of what they are multiplied with; never 0."""
    dtype = float_type.numpy()
    least = float(ml_dtypes.finfo(dtype).smallest_subnormal)  # type: ignore[no-untyped-call]
    stored: NDArray[np.float32] = np.maximum(scale.astype(dtype).astype(np.float32), np.float32(least))
    return stored


def _float_type(layer: Layer) -> ir.DataType:
    """The type that a layer computes in: that of its activation."""
    activation = layer.node.inputs[0]
    return (activation.dtype if activation is not None else None) or ir.DataType.FLOAT


def _typed(value: ir.Value, dtype: ir.DataType, shape: ir.Shape | None) -> ir.Value:
    value.type, value.shape = ir.TensorType(dtype), shape
    return value
