"""Replace nodes of ONNX graphs by ONNX Runtime's own operators. Knows neither bundles nor particular operators."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

DOMAIN, DOMAIN_VERSION = "com.microsoft", 1

Attributes = Mapping[str, int | float | list[int]]


class Replacement:
    """New nodes that replace old ones; `name` is the prefix of their names."""

    def __init__(self, graph: ir.Graph, name: str) -> None:
        self._graph, self._name = graph, name
        self._nodes: list[ir.Node] = []

    def add(self, op: str, inputs: Sequence[ir.Value], attributes: Attributes, what: str, domain: str = "") -> ir.Value:
        """Add a node; returns its output."""
        name = f"{self._name}.{what}"
        node = ir.node(op, inputs, dict(attributes), domain=domain, name=name)
        node.outputs[0].name = name
        self._nodes.append(node)
        return node.outputs[0]

    def integers(self, values: Sequence[int], what: str) -> ir.Value:
        """Add an int64 initializer, for axes and shapes."""
        name = f"{self._name}.{what}"
        tensor = ir.tensor(np.array(values), name=name)
        shape = ir.Shape([len(values)])
        value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=shape, const_value=tensor)
        self._graph.register_initializer(value)
        return value

    def replace(self, old: Sequence[ir.Node], result: ir.Value) -> None:
        """Replace the nodes `old`; `result` takes the name and the uses of the last one's output."""
        ir.convenience.replace_nodes_and_values(self._graph, old[0], old, self._nodes, [old[-1].outputs[0]], [result])


def replace_each(
    model: ir.Model, op: str, has_kernel: Callable[[ir.Node], bool], replace: Callable[[ir.Graph, ir.Node], None]
) -> int:
    """Replace each node of the operator `op` that has a kernel, in place; returns the number of replacements.

    Initializers are unchanged, and so are their names and external data.
    """
    nodes = [node for node in model.graph if node.op_type == op and has_kernel(node)]
    for node in nodes:
        replace(model.graph, node)
    if nodes:
        model.opset_imports[DOMAIN] = DOMAIN_VERSION
    return len(nodes)
