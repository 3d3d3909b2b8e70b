"""Replace ONNX's Attention, whose operands have the heads first, by operators that read rows of channels (n, l, c).

These are ONNX Runtime's MultiHeadAttention and the 3-D form of ONNX's Attention. The transposes between rows and heads
go, where the graph has them. On CPUs MultiHeadAttention is computed in tiles, while ONNX's Attention has all scores at
once: gigabytes for large images. On GPUs the kernels of both read and write rows, and transpose what has the heads
first once more; MultiHeadAttention alone also uses cuDNN. Knows nothing of bundles.
"""

from collections.abc import Collection

import onnx_ir as ir

from .nodes import DOMAIN, Replacement, replace_each
from .patterns import made_by, only_user, rank

SWAPPED = [0, 2, 1, 3]  # (n, heads, l, d) to (n, l, heads, d), and back
# The most channels of a head that the fused CUDA kernels take, in multiples of 8.
WIDEST = 256
ON_CPU = (ir.DataType.FLOAT,)
ON_CUDA = (ir.DataType.FLOAT, ir.DataType.FLOAT16)


def use_flash_attention(model: ir.Model) -> int:
    """Replace each Attention that the tiled CPU kernel supports, in place; returns the number of replacements.

    Not supported, and left as they are: masks, soft caps, scores as an output, 3-D inputs, different numbers of heads,
    and dtypes other than float32.
    """
    return replace_each(model, "Attention", lambda node: node if is_plain(node, ON_CPU) else None, _multi_head)


def use_multi_head_attention(model: ir.Model) -> int:
    """Replace each Attention by MultiHeadAttention for CUDA, in place; returns the number of replacements.

    Left as they are, beside what is not supported on CPUs: bfloat16, and heads that fused kernels do not take.
    """
    return replace_each(model, "Attention", lambda node: node if is_fused(node) else None, _multi_head)


def use_flat_attention(model: ir.Model) -> int:
    """Let each Attention read and write rows, for CUDA, in place; returns the number of changed nodes.

    It stays ONNX's operator, and its kernel the same. Left as they are: those of `use_multi_head_attention`.
    """
    return replace_each(model, "Attention", lambda node: node if is_fused(node) else None, _flat)


def is_plain(node: ir.Node, dtypes: Collection[ir.DataType]) -> bool:
    """Whether it is an Attention of three 4-D operands with equally many heads, without a mask, caps or scores."""
    operands = [value for value in node.inputs if value is not None]
    return (
        len(operands) == len(node.inputs) == 3
        and all(value.dtype in dtypes for value in operands)
        and isinstance(_heads(operands[0]), int)
        and len({_heads(value) for value in operands}) == 1
        and not any(output.uses() or output.is_graph_output() for output in node.outputs[1:])
        and not node.attributes.get_int("is_causal", 0)
        and not node.attributes.get_float("softcap", 0.0)
    )


def is_fused(node: ir.Node) -> bool:
    """Whether it is a plain Attention that has a fused CUDA kernel, in whatever layout."""
    if not is_plain(node, ON_CUDA):
        return False
    widths = {value.shape[3] for value in node.inputs if value is not None and value.shape is not None}
    (width, *more) = widths
    return not more and isinstance(width, int) and width <= WIDEST and width % 8 == 0


def _heads(value: ir.Value) -> int | ir.SymbolicDim | None:
    """The second dimension of a 4-D value, else None."""
    return value.shape[1] if value.shape is not None and len(value.shape) == 4 else None


def heads_of(node: ir.Node) -> int:
    """The number of heads of a plain Attention."""
    heads = None if node.inputs[0] is None else _heads(node.inputs[0])
    assert isinstance(heads, int)
    return heads


def scale_of(node: ir.Node) -> dict[str, int | float]:
    """The attribute of the scale, if there is one."""
    return {"scale": node.attributes["scale"].as_float()} if "scale" in node.attributes else {}


def rows_before(value: ir.Value | None) -> ir.Value | None:
    """The rows (n, l, heads · d) that a value (n, heads, l, d) is a view of; None if it is not."""
    transpose = made_by(value, "Transpose")
    reshape = None if transpose is None else made_by(transpose.inputs[0], "Reshape")
    rows = None if reshape is None else reshape.inputs[0]
    if transpose is None or reshape is None or rows is None or rank(rows) != 3 or not _swaps(transpose):
        return None
    return rows if _are_rows(rows, reshape.outputs[0]) else None


def _swaps(transpose: ir.Node) -> bool:
    return list(transpose.attributes.get_ints("perm", [])) == SWAPPED


def _are_rows(rows: ir.Value, split: ir.Value) -> bool:
    """Whether reshaping (n, l, c) to (n, l, heads, d), or back, cuts only the last dimension, where c = heads · d."""
    if rows.shape is None or split.shape is None or len(rows.shape) != 3 or len(split.shape) != 4:
        return False
    (_, length, channels), (_, same, heads, width) = rows.shape, split.shape
    whole = isinstance(heads, int) and isinstance(width, int) and heads * width == channels
    return whole and length == same and (isinstance(length, int) or length.value is not None)


def rows_of(new: Replacement, node: ir.Node) -> list[ir.Value]:
    """Query, key and value of a plain Attention as rows; transposed back if they never were rows."""
    merged, rows = None, []
    for value, name in zip(node.inputs, ("query", "key", "value"), strict=True):
        before = rows_before(value)
        if before is None:
            merged = merged or new.integers([0, 0, -1], "merged")
            last = new.add("Transpose", [value], {"perm": SWAPPED}, f"{name}_heads_last")
            before = new.add("Reshape", [last, merged], {}, name)
        rows.append(before)
    return rows


def replace_by_rows(new: Replacement, node: ir.Node, rows: ir.Value) -> None:
    """Replace a plain Attention by its result in rows, and so the transpose and reshape that made these of it."""
    after = only_user(node.outputs[0])
    if after is not None and after.op_type == "Transpose" and _swaps(after):
        merge = only_user(after.outputs[0])
        if merge is not None and merge.op_type == "Reshape" and _are_rows(merge.outputs[0], after.outputs[0]):
            new.replace([node, after, merge], rows)
            return
    split = new.integers([0, 0, heads_of(node), -1], "split")
    rows = new.add("Reshape", [rows, split], {}, "heads_last")
    new.replace([node], new.add("Transpose", [rows], {"perm": SWAPPED}, "heads_first"))


def _multi_head(graph: ir.Graph, node: ir.Node) -> None:
    new = Replacement(graph, str(node.outputs[0].name))
    attributes = {"num_heads": heads_of(node), **scale_of(node)}
    replace_by_rows(new, node, new.add("MultiHeadAttention", rows_of(new, node), attributes, "rows", DOMAIN))


def _flat(graph: ir.Graph, node: ir.Node) -> None:
    new = Replacement(graph, str(node.outputs[0].name))
    heads = heads_of(node)
    attributes = {"q_num_heads": heads, "kv_num_heads": heads, **scale_of(node)}
    replace_by_rows(new, node, new.add("Attention", rows_of(new, node), attributes, "rows"))
