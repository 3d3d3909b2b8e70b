"""ONNX's operators replaced by ONNX Runtime's own, node by node. Knows neither bundles nor which operators."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

DOMAIN, DOMAIN_VERSION = "com.microsoft", 1

Attributes = Mapping[str, int | float | list[int]]


class Replacement:
    """New nodes, one after the other, that take the place of old ones; their names begin with that of a value."""

    def __init__(self, graph: ir.Graph, name: str) -> None:
        self._graph, self._name = graph, name
        self._nodes: list[ir.Node] = []

    def add(self, op: str, inputs: Sequence[ir.Value], attributes: Attributes, what: str, domain: str = "") -> ir.Value:
        """The output of a new node."""
        name = f"{self._name}.{what}"
        node = ir.node(op, inputs, dict(attributes), domain=domain, name=name)
        node.outputs[0].name = name
        self._nodes.append(node)
        return node.outputs[0]

    def integers(self, values: Sequence[int], what: str) -> ir.Value:
        """A new initializer, for axes and shapes."""
        name = f"{self._name}.{what}"
        tensor = ir.tensor(np.array(values), name=name)
        shape = ir.Shape([len(values)])
        value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=shape, const_value=tensor)
        self._graph.register_initializer(value)
        return value

    def replace(self, old: Sequence[ir.Node], result: ir.Value) -> None:
        """Take the place of `old`: `result` is used instead of the output of the last of them, under its name."""
        ir.convenience.replace_nodes_and_values(self._graph, old[0], old, self._nodes, [old[-1].outputs[0]], [result])


def replace_each(
    model: ir.Model, op: str, has_kernel: Callable[[ir.Node], bool], replace: Callable[[ir.Graph, ir.Node], None]
) -> int:
    """Replace each node of an operator that ONNX Runtime's own can compute, in place; returns how many.

    Initializers stay as they are, so that their names and their external data do.
    """
    nodes = [node for node in model.graph if node.op_type == op and has_kernel(node)]
    for node in nodes:
        replace(model.graph, node)
    if nodes:
        model.opset_imports[DOMAIN] = DOMAIN_VERSION
    return len(nodes)
