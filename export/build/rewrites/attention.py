"""Replace ONNX's Attention by ONNX Runtime's MultiHeadAttention, which is computed in tiles on CPUs.

ONNX Runtime computes ONNX's Attention with all scores at once, in several tensors of (heads, S, L): gigabytes for large
images. Knows nothing of bundles.
"""

import onnx_ir as ir

from .nodes import DOMAIN, Replacement, replace_each

SWAPPED = [0, 2, 1, 3]  # (n, heads, S, d) to (n, S, heads, d), and back


def use_flash_attention(model: ir.Model) -> int:
    """Replace each Attention that the tiled CPU kernel supports, in place; returns the number of replacements.

    Not supported, and left as they are: masks, soft caps, scores as an output, 3-D inputs, different numbers of heads,
    and dtypes other than float32.
    """
    return replace_each(model, "Attention", _has_kernel, _replace)


def _has_kernel(node: ir.Node) -> bool:
    operands = [value for value in node.inputs if value is not None]
    return (
        len(operands) == len(node.inputs) == 3
        and all(value.dtype == ir.DataType.FLOAT for value in operands)
        and isinstance(_heads(operands[0]), int)
        and len({_heads(value) for value in operands}) == 1
        and not any(output.uses() or output.is_graph_output() for output in node.outputs[1:])
        and not node.attributes.get_int("is_causal", 0)
        and not node.attributes.get_float("softcap", 0.0)
    )


def _heads(value: ir.Value) -> int | ir.SymbolicDim | None:
    """The second dimension of a 4-D value, else None."""
    return value.shape[1] if value.shape is not None and len(value.shape) == 4 else None


def _replace(graph: ir.Graph, node: ir.Node) -> None:
    new = Replacement(graph, str(node.outputs[0].name))
    operands = [value for value in node.inputs if value is not None]
    heads = _heads(operands[0])
    assert isinstance(heads, int)
    # To (n, S, heads * d) and back. ONNX Runtime cancels these transposes with those of the exported graph.
    merged, split = new.integers([0, 0, -1], "merged"), new.integers([0, 0, heads, -1], "split")
    rows = []
    for value, name in zip(operands, ("query", "key", "value"), strict=True):
        heads_last = new.add("Transpose", [value], {"perm": SWAPPED}, f"{name}_heads_last")
        rows.append(new.add("Reshape", [heads_last, merged], {}, name))
    attributes: dict[str, int | float] = {"num_heads": heads}
    if "scale" in node.attributes:
        attributes["scale"] = node.attributes["scale"].as_float()
    result = new.add("MultiHeadAttention", rows, attributes, "rows", DOMAIN)
    result = new.add("Reshape", [result, split], {}, "heads_last")
    new.replace([node], new.add("Transpose", [result], {"perm": SWAPPED}, "heads_first"))
