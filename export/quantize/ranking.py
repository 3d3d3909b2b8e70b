"""What each layer costs: the error of the guided prediction with this layer alone quantized.

One graph holds all layers in both forms, and an input chooses the layer that is computed in the quantized one: a
ranking takes two calls for each layer, at a small size, in one session. The squares of the costs add up to about that
of the whole error, so they also say how many layers must stay in float.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from itertools import chain

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.tape import Tape

from latentrt.runtime.bundle import Bundle
from latentrt.runtime.goldens import relative_error
from latentrt.runtime.request import CallOptions

from .calls import Caller
from .insert import Writer
from .layers import Layer

ONLY = "only_layer"
_STEPS = 4
_MEASURED = (1, 3)  # calls, in the middle and at the end


def costs(
    bundle: Bundle, layers: Sequence[Layer], prompt: str, seed: int, options: CallOptions, tick: Callable[[], object]
) -> dict[str, float]:
    """Layer -> the root mean square of its errors.

    Args:
        bundle: with the graph of `with_switches`, in float32.
        options: of the pictures; drawn here are smaller ones, in few steps.
        tick: called once a layer is measured.
    """
    only = np.array([-1], np.int64)
    height, width = (max(64, (options[side] or 0) // 4 // 64 * 64) for side in ("height", "width"))
    small: CallOptions = {**options, "num_inference_steps": _STEPS, "height": height, "width": width}
    found = {}
    with closing(Caller(bundle, "onnxruntime")) as caller:
        trajectory = caller.trajectory(prompt, seed, small)
        predict = caller.predictor(trajectory, {ONLY: only})
        calls = [*caller.calls(trajectory, {ONLY: only})]
        for index, layer in enumerate(layers):
            only[0] = index
            errors = [relative_error(predict(k, calls[k].before), calls[k].prediction) for k in _MEASURED]
            found[layer.name] = float(np.sqrt(np.mean(np.square(errors))))
            tick()
    return found


def needed_in_float(of_layers: Mapping[str, float], mean: float, allowed: float) -> int:
    """About how many layers must stay in float, the most costly first, for a mean error to fall to what is allowed."""
    squares = np.sort(np.square([*of_layers.values()]))
    left = np.cumsum(squares) / squares.sum() * mean**2
    return len(squares) - int(np.searchsorted(left, allowed**2, side="right"))


def with_switches(model: ir.Model, layers: Sequence[Layer], writer: Writer) -> None:
    """Give a float32 graph the input `only_layer` (1,) int64: the layer that is quantized, -1 for none; in place."""
    graph = model.graph
    only = ir.Value(name=ONLY, type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([1]))
    graph.inputs.append(only)
    for index, layer in enumerate(layers):
        node, tape = layer.node, Tape()
        number = tape.initializer(ir.tensor(np.array([index], np.int64)), f"{ONLY}.{index}")
        scalar = tape.initializer(ir.tensor(np.array([], np.int64)), f"{ONLY}.{index}.scalar")
        chosen = tape.op("Reshape", [tape.op("Equal", [only, number]), scalar])
        branches = {"then_branch": _quantized(layer, writer, index), "else_branch": _branch(node, node.inputs, ())}
        attributes = [ir.AttrGraph(name, branch) for name, branch in branches.items()]
        result = node.outputs[0]
        switched = ir.Value(name=f"{result.name}.switched", type=result.type, shape=result.shape)
        choice = ir.Node("", "If", [chosen], attributes=attributes, outputs=[switched])
        for value in tape.initializers:
            graph.register_initializer(value)
        graph.insert_before(node, [*tape.nodes, choice])
        ir.convenience.replace_all_uses_with(result, switched)
        graph.remove(node, safe=True)


def _quantized(layer: Layer, writer: Writer, index: int) -> ir.Graph:
    (dequantize,), _, scale = writer.weight(layer)
    inputs = [*layer.node.inputs]
    nodes, inputs[1] = _multiplied(writer.graph, dequantize.inputs[0], scale, layer)
    if writer.form.activation is not None:
        assert inputs[0] is not None
        more, inputs[0], _ = writer.activation(inputs[0])
        nodes = [*nodes, *more]
    for value in chain.from_iterable(other.outputs for other in nodes):
        value.name = f"{value.name}.{index}"  # names are those of the whole graph, and layers share activations
    return _branch(layer.node, inputs, nodes)


def _multiplied(
    graph: ir.Graph, quantized: ir.Value | None, scale: NDArray[np.float32], layer: Layer
) -> tuple[list[ir.Node], ir.Value]:
    """A weight without DequantizeLinear, which ONNX Runtime fuses with products, and fails to inside of branches."""
    sides = [-1 if axis == layer.channels and scale.ndim else 1 for axis in range(len(layer.shape))]
    tape, name = Tape(), f"{layer.name}.steps"
    steps = tape.initializer(ir.tensor(scale.reshape(sides), name=name), name)
    graph.register_initializer(steps)
    full = tape.op("Cast", [quantized], {"to": int(ir.DataType.FLOAT)})
    back = tape.op("Mul", [full, steps])
    full.name, back.name = f"{name}.cast", f"{name}.product"
    return [*tape.nodes], back


def _branch(node: ir.Node, inputs: Sequence[ir.Value | None], before: Sequence[ir.Node]) -> ir.Graph:
    result = node.outputs[0]
    output = ir.Value(name=f"{result.name}.branch", type=result.type, shape=result.shape)
    copy = ir.Node(node.domain, node.op_type, inputs, attributes=node.attributes.values(), outputs=[output])
    return ir.Graph([], [output], nodes=[*before, copy], name=f"{node.name}.branch")
