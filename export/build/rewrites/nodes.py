"""Replace nodes of ONNX graphs by ONNX Runtime's own operators. Knows neither bundles nor particular operators."""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np
import onnx_ir as ir

DOMAIN, DOMAIN_VERSION = "com.microsoft", 1

Attributes = Mapping[str, int | float | list[int]]
M = TypeVar("M")  # what a rewrite matches


class Replacement:
    """New nodes that replace old ones; `name` is the prefix of their names."""

    def __init__(self, graph: ir.Graph, name: str) -> None:
        self._graph, self._name = graph, name
        self._nodes: list[ir.Node] = []

    def add(
        self, op: str, inputs: Sequence[ir.Value | None], attributes: Attributes, what: str, domain: str = ""
    ) -> ir.Value:
        """Add a node; returns its output."""
        return self.add_node(op, inputs, attributes, [what], domain)[0]

    def add_node(
        self,
        op: str,
        inputs: Sequence[ir.Value | None],
        attributes: Attributes,
        outputs: Sequence[str],
        domain: str = "",
    ) -> Sequence[ir.Value]:
        """Add a node with several outputs; one whose name is empty is left out. Returns all of them."""
        node = ir.node(
            op,
            inputs,
            dict(attributes),
            domain=domain,
            name=f"{self._name}.{outputs[0]}",
            num_outputs=len(outputs),
        )
        for value, what in zip(node.outputs, outputs, strict=True):
            value.name = f"{self._name}.{what}" if what else ""
        self._nodes.append(node)
        return node.outputs

    def integers(self, values: Sequence[int], what: str) -> ir.Value:
        """Add an int64 initializer, for axes and shapes."""
        name = f"{self._name}.{what}"
        tensor = ir.tensor(np.array(values), name=name)
        shape = ir.Shape([len(values)])
        value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=shape, const_value=tensor)
        self._graph.register_initializer(value)
        return value

    def replace(self, old: Sequence[ir.Node], result: ir.Value, *more: tuple[ir.Value, ir.Value]) -> None:
        """Replace the nodes `old`; `result` takes the name and the uses of the last one's output.

        `more` are further pairs of a value of `old` and the new one that takes its name and uses. What computed only
        operands of the old nodes is removed, too.
        """
        values = [(old[-1].outputs[0], result), *more]
        operands = [value for node in old for value in node.inputs]
        ir.convenience.replace_nodes_and_values(
            self._graph, old[-1], old, self._nodes, [before for before, _ in values], [after for _, after in values]
        )
        for value in operands:
            remove_unused(self._graph, value)


def remove_unused(graph: ir.Graph, value: ir.Value | None) -> None:
    """Remove the node of a value that nothing uses, and in turn those of its operands; initializers are kept."""
    node = None if value is None else value.producer()
    if node is None or node.graph is not graph:
        return
    if any(output.uses() or output.is_graph_output() for output in node.outputs):
        return
    operands = list(node.inputs)
    graph.remove(node, safe=True)
    for operand in operands:
        remove_unused(graph, operand)


def replace_each(
    model: ir.Model,
    op: str,
    match: Callable[[ir.Node], M | None],
    replace: Callable[[ir.Graph, M], None],
    *,
    domain: str = "",
) -> int:
    """Replace what `match` finds around each node of the operator `op`, in place; returns the number of replacements.

    Initializers are unchanged, and so are their names and external data.
    """
    count = 0
    for node in [node for node in model.graph if (node.domain, node.op_type) == (domain, op)]:
        found = match(node) if node.graph is model.graph else None  # an earlier replacement may have removed it
        if found is not None:
            replace(model.graph, found)
            count += 1
    if count:
        model.graph.sort()
        model.opset_imports[DOMAIN] = DOMAIN_VERSION
    return count
