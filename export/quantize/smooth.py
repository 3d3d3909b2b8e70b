"""SmoothQuant (arXiv:2211.10438): outliers of activations moved into the weights that read them, at no cost when run.

Channels are divided by factors where they are made, and the rows of the weights that read them are multiplied, so the
graph computes the same. Two makers can take factors: LayerNormalization, in its scale and bias, and the linear half of
a gated feed-forward layer, in the columns of the weight before.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .insert import Ranges
from .layers import Layer, constant

_LEAST = 1e-5


@dataclass(frozen=True, slots=True, eq=False)
class Maker:
    """What makes an activation: constants whose channels can be divided by factors.

    Attributes:
        places: nodes and input indices of these constants.
        offset: the first of their last axis that belongs to the activation.
    """

    places: tuple[tuple[ir.Node, int], ...]
    offset: int = 0


def maker(layer: Layer) -> Maker | None:
    """What makes the activation of a product, where it can take factors."""
    activation = layer.node.inputs[0]
    node = None if activation is None else activation.producer()
    if layer.node.op_type != "MatMul" or node is None:
        return None
    if node.op_type == "LayerNormalization":
        return Maker(tuple((node, index) for index in range(1, len(node.inputs)) if node.inputs[index] is not None))
    return _gated(node) if node.op_type == "Mul" else None


def _gated(product: ir.Node) -> Maker | None:
    """The linear half of `half · gelu(other half)`, where both are halves of one product plus a bias."""
    sides = [value.producer() for value in product.inputs if value is not None]
    halves = [node for node in sides if node is not None and node.op_type == "Split"]
    if len(sides) != 2 or len(halves) != 1 or all(node is None or node.op_type != "Gelu" for node in sides):
        return None
    split = halves[0]
    number = next(i for i, value in enumerate(split.outputs) if value in product.inputs)
    added = split.inputs[0].producer() if split.inputs[0] is not None else None
    places = []
    if added is not None and added.op_type == "Add":
        bias = next((i for i, value in enumerate(added.inputs) if constant(value) is not None), None)
        if bias is None:
            return None
        places.append((added, bias))
        other = added.inputs[1 - bias]
        added = None if other is None else other.producer()
    if len(split.outputs) != 2 or added is None or added.op_type != "MatMul" or constant(added.inputs[1]) is None:
        return None
    if any(len([*value.uses()]) != 1 for value in (split.inputs[0], split.outputs[number]) if value is not None):
        return None
    return Maker((*places, (added, 1)), number)


def smooth(
    graph: ir.Graph, layers: Iterable[Layer], maxima: Mapping[str, NDArray[np.float32]], ranges: Ranges, share: float
) -> dict[str, tuple[float, float]]:
    """Divide channels of activations by `max|x|^share / max|w|^(1 - share)`, and multiply the weights, in place.

    Args:
        layers: those that will be quantized; factors are used only where all that reads an activation is among them.
        maxima: activation -> (C,), largest absolute values; activations without any are left alone.
        ranges: of all activations.

    Returns the ranges after the change.
    """
    new, by_activation = dict(ranges), dict[ir.Value, list[Layer]]()
    for layer in layers:
        activation = layer.node.inputs[0]
        if activation is not None and activation.name in maxima:
            by_activation.setdefault(activation, []).append(layer)
    for activation, readers in by_activation.items():
        made, name = maker(readers[0]), str(activation.name)
        if made is None or {user for user, _ in activation.uses()} != {layer.node for layer in readers}:
            continue
        factors = _factors(maxima[name], readers, share)
        for node, index in made.places:
            _divide(graph, node, index, made.offset * len(factors), factors)
        for layer in readers:
            _set(layer.weight, _array(layer.weight) * factors[:, None])
        # The least and the largest channel may now be others; maxima have no signs.
        most = float((maxima[name] / factors).max())
        low, high = ranges[name]
        new[name] = (max(low / float(factors.min()), -most), min(high / float(factors.min()), most))
    return new


def _factors(maxima: NDArray[np.float32], readers: list[Layer], share: float) -> NDArray[np.float32]:
    weights = np.max([np.abs(_array(layer.weight)).max(axis=1) for layer in readers], axis=0)
    factors: NDArray[np.float32] = np.maximum(maxima, _LEAST) ** share / np.maximum(weights, _LEAST) ** (1 - share)
    return np.clip(factors, _LEAST, 1 / _LEAST)


def _divide(graph: ir.Graph, node: ir.Node, index: int, start: int, factors: NDArray[np.float32]) -> None:
    """Divide part of the last axis of a constant; in a copy, unless it is the weight of a layer."""
    value = node.inputs[index]
    assert value is not None
    array = _array(value).copy()
    array[..., start : start + len(factors)] /= factors
    source = constant(value)
    assert source is not None
    if node.op_type == "MatMul":
        _set(source, array)
        return
    new = ir.Value(name=f"{source.name}.smooth", type=value.type, shape=value.shape)
    _set(new, array)
    graph.register_initializer(new)
    node.replace_input_with(index, new)


def _set(value: ir.Value, array: NDArray[np.float32]) -> None:
    """Give a constant other content in its own dtype."""
    dtype = value.dtype or ir.DataType.FLOAT
    value.const_value = ir.Tensor(array.astype(dtype.numpy()), dtype=dtype, name=value.name)


def _array(value: ir.Value | None) -> NDArray[np.float32]:
    source = constant(value)
    assert source is not None
    assert source.const_value is not None
    return source.const_value.numpy().astype(np.float32)
