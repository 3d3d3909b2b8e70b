"""Let ONNX Runtime's GroupNorm do the addition before it, too: SkipGroupNorm. Knows nothing of bundles.

In a residual block, a group norm follows the addition of the time embedding, or of the block before. Both passes begin
with group_norm.py's, whose nodes they extend.
"""

from dataclasses import dataclass

import onnx_ir as ir

from .group_norm import use_ort_group_norms
from .nodes import DOMAIN, Replacement, replace_each
from .patterns import KERNEL_DTYPES, made_by, only_user, rank, same_shape, summands

CHANNELS_LAST, CHANNELS_FIRST = [0, 2, 3, 1], [0, 3, 1, 2]


@dataclass(frozen=True, slots=True)
class Norm:
    """GroupNorm(x + skip): `total` is the sum, (n, c, h, w)."""

    node: ir.Node
    transpose: ir.Node
    x: ir.Value
    skip: ir.Value
    total: ir.Value


def add_time_in_group_norms(model: ir.Model) -> int:
    """Replace group norms, and take in time embeddings (n, c, 1, 1) that are added before; returns how many changed.

    Saves the addition's kernel. Not supported, and left as it is: a sum with another use.
    """
    return use_ort_group_norms(model) + replace_each(model, "GroupNorm", _match_time, _add_time, domain=DOMAIN)


def add_residual_in_group_norms(model: ir.Model) -> int:
    """Replace group norms, and take in residuals (n, c, h, w) that are added before; returns how many changed.

    Saves the addition's kernel where convolutions are channels last. Otherwise both operands and the sum, which is the
    next residual, have to be transposed, which costs more than it saves.
    """
    return use_ort_group_norms(model) + replace_each(model, "GroupNorm", _match_residual, _add_residual, domain=DOMAIN)


def _sums(node: ir.Node) -> list[Norm]:
    """The two ways to read a GroupNorm of a sum, whose operands may be swapped; empty for others."""
    transpose = made_by(node.inputs[0], "Transpose")
    if transpose is None or only_user(transpose.outputs[0]) is not node:
        return []
    total = transpose.inputs[0]
    found = None if total is None else summands(total.producer())
    if total is None or found is None or total.dtype not in KERNEL_DTYPES or rank(total) != 4:
        return []
    return [Norm(node, transpose, x, skip, total) for x, skip in (found, found[::-1])]


def _match_time(node: ir.Node) -> Norm | None:
    for norm in _sums(node):
        x, skip = norm.x.shape, norm.skip.shape
        if x is None or skip is None or not same_shape(norm.x, norm.total) or len(skip) != 4:
            continue
        alike = x[0] == skip[0] and x[1] == skip[1] and isinstance(x[1], int)
        if alike and list(skip[2:]) == [1, 1] and only_user(norm.total) is norm.transpose:
            return norm
    return None


def _match_residual(node: ir.Node) -> Norm | None:
    return next((norm for norm in _sums(node) if same_shape(norm.x, norm.skip)), None)


def _add_time(graph: ir.Graph, norm: Norm) -> None:
    new = Replacement(graph, str(norm.node.outputs[0].name))
    x = new.add("Transpose", [norm.x], {"perm": CHANNELS_LAST}, "with_time.channels_last")
    skip = new.add("Squeeze", [norm.skip, new.integers([2, 3], "with_time.axes")], {}, "with_time.time")
    result = new.add("SkipGroupNorm", [x, *norm.node.inputs[1:], skip], _attributes(norm.node), "with_time", DOMAIN)
    new.replace([norm.node], result)


def _add_residual(graph: ir.Graph, norm: Norm) -> None:
    new = Replacement(graph, str(norm.node.outputs[0].name))
    x, skip = (
        new.add("Transpose", [value], {"perm": CHANNELS_LAST}, f"with_residual.{name}")
        for value, name in ((norm.x, "x"), (norm.skip, "skip"))
    )
    inputs = [x, *norm.node.inputs[1:], skip]
    if only_user(norm.total) is norm.transpose:
        new.replace([norm.node], new.add("SkipGroupNorm", inputs, _attributes(norm.node), "with_residual", DOMAIN))
        return
    outputs = ["with_residual", "with_residual.sum"]
    result, last = new.add_node("SkipGroupNorm", inputs, _attributes(norm.node), outputs, DOMAIN)
    total = new.add("Transpose", [last], {"perm": CHANNELS_FIRST}, "with_residual.channels_first")
    add = norm.total.producer()
    assert add is not None
    new.replace([add, norm.transpose, norm.node], result, (norm.total, total))


def _attributes(node: ir.Node) -> dict[str, int | float]:
    """Those of a GroupNorm, which both operators have."""
    whole = {name: node.attributes[name].as_int() for name in ("groups", "channels_last", "activation")}
    return {**whole, "epsilon": node.attributes["epsilon"].as_float()}
