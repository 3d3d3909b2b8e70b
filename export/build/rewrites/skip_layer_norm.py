"""Replace a residual and the layer norm that follows by ONNX Runtime's SkipLayerNormalization.

One kernel adds the bias of a linear layer, adds the residual and normalizes; the sum is an output, too, for the next
residual. From ONNX Runtime 1.27 on it accumulates in float32. Knows nothing of bundles.
"""

from dataclasses import dataclass

import onnx_ir as ir

from .nodes import DOMAIN, Replacement, replace_each
from .patterns import KERNEL_DTYPES, biased, is_vector, only_user, rank, same_shape, summands


@dataclass(frozen=True, slots=True)
class Norm:
    """LayerNorm(x + bias + skip): what is replaced, the last node the norm."""

    nodes: tuple[ir.Node, ...]
    x: ir.Value
    skip: ir.Value
    bias: ir.Value | None
    total: ir.Value  # of x, bias and skip


def use_skip_layer_norm(model: ir.Model) -> int:
    """Replace each LayerNormalization of a sum, with the sum and a bias in it, in place; returns how many.

    Not supported, and left as they are: bfloat16, residuals that are broadcast, tensors that are not (n, l, c), norms
    of several dimensions, without a bias, or whose mean or deviation is used.
    """
    return replace_each(model, "LayerNormalization", _match, _replace)


def _match(node: ir.Node) -> Norm | None:
    total = node.inputs[0]
    found = None if total is None else summands(total.producer())
    if total is None or found is None or not _has_kernel(node):
        return None
    residual = total.producer()
    assert residual is not None
    a, b = found
    if not same_shape(a, b) or not same_shape(a, total):
        return None
    for inner, skip in ((a, b), (b, a)):
        parts = biased(inner)
        if parts is not None and only_user(inner) is residual and same_shape(parts[0], skip):
            add = inner.producer()
            assert add is not None
            return Norm((add, residual, node), parts[0], skip, parts[1], total)
    return Norm((residual, node), a, b, None, total)


def _has_kernel(node: ir.Node) -> bool:
    x, *weights = node.inputs
    return (
        x is not None
        and x.dtype in KERNEL_DTYPES
        and rank(x) == 3
        and len(weights) == 2
        and all(is_vector(weight, x) for weight in weights)
        and node.attributes.get_int("axis", -1) in (-1, 2)
        and node.attributes.get_int("stash_type", 1) == ir.DataType.FLOAT
        and not any(output.uses() or output.is_graph_output() for output in node.outputs[1:])
    )


def _replace(graph: ir.Graph, norm: Norm) -> None:
    node = norm.nodes[-1]
    new = Replacement(graph, str(node.outputs[0].name))
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    inputs = [norm.x, norm.skip, *node.inputs[1:], *([] if norm.bias is None else [norm.bias])]
    if only_user(norm.total) is node:
        result = new.add("SkipLayerNormalization", inputs, {"epsilon": epsilon}, "normalized", DOMAIN)
        new.replace(norm.nodes, result)
        return
    result, _, _, total = new.add_node(
        "SkipLayerNormalization", inputs, {"epsilon": epsilon}, ["normalized", "", "", "sum"], DOMAIN
    )
    new.replace(norm.nodes, result, (norm.total, total))
