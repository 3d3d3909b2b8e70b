"""Compute queries, keys and values of self-attention by one product of matrices, for MultiHeadAttention.

The weights are put together in the graph, where ONNX Runtime does it once, when it loads the file, so files still share
the bundle's weights, and LoRA changes them as before. Knows nothing of bundles.
"""

from dataclasses import dataclass

import onnx_ir as ir

from .attention import heads_of, is_fused, replace_by_rows, rows_before, scale_of
from .nodes import DOMAIN, Replacement, replace_each
from .patterns import made_by, only_user


@dataclass(frozen=True, slots=True)
class SelfAttention:
    """An Attention whose queries, keys and values are products of the same `x` (n, l, c)."""

    node: ir.Node
    x: ir.Value
    weights: tuple[ir.Value, ...]  # three (c, heads · d)


def use_packed_attention(model: ir.Model) -> int:
    """Replace each self-attention, in place; returns the number of replacements.

    Left as they are, beside what has no fused kernel: linear layers with a bias, and attention to text, whose keys and
    values are inputs of the graph.
    """
    return replace_each(model, "Attention", _match, _replace)


def _match(node: ir.Node) -> SelfAttention | None:
    if not is_fused(node):
        return None
    products = [made_by(rows_before(value), "MatMul") for value in node.inputs]
    sources, weights = [], []
    for product in products:
        if product is None or only_user(product.outputs[0]) is None or not _is_weight(product.inputs[1]):
            return None
        sources.append(product.inputs[0])
        weights.append(product.inputs[1])
    x = sources[0]
    if x is None or any(source is not x for source in sources):
        return None
    return SelfAttention(node, x, tuple(weight for weight in weights if weight is not None))


def _is_weight(value: ir.Value | None) -> bool:
    """Whether a value is a matrix that is known when the graph is loaded, maybe cast from another dtype."""
    cast = made_by(value, "Cast")
    stored = value if cast is None else cast.inputs[0]
    return stored is not None and stored.is_initializer() and stored.shape is not None and len(stored.shape) == 2


def _replace(graph: ir.Graph, found: SelfAttention) -> None:
    node, heads = found.node, heads_of(found.node)
    new = Replacement(graph, str(node.outputs[0].name))
    # The kernel wants queries, keys and values of a head side by side: (n, l, heads, 3, d).
    each, together = new.integers([0, heads, 1, -1], "each"), new.integers([0, -1], "together")
    split = new.integers([0, 0, heads, 3, -1], "heads")
    parts = [new.add("Reshape", [weight, each], {}, f"weight_{i}") for i, weight in enumerate(found.weights)]
    weight = new.add("Concat", parts, {"axis": 2}, "weights")
    rows = new.add("MatMul", [found.x, new.add("Reshape", [weight, together], {}, "weight")], {}, "packed_rows")
    packed = new.add("Reshape", [rows, split], {}, "packed")
    attributes = {"num_heads": heads, **scale_of(node)}
    replace_by_rows(new, node, new.add("MultiHeadAttention", [packed], attributes, "rows", DOMAIN))
