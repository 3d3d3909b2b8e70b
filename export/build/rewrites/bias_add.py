"""Replace a bias and a residual by ONNX Runtime's BiasAdd: one kernel in place of two. Knows nothing of bundles."""

from dataclasses import dataclass

import onnx_ir as ir

from .nodes import DOMAIN, Replacement, replace_each
from .patterns import KERNEL_DTYPES, biased, channels_of, only_user, same_shape, summands

WIDTHS = (320, 640, 1280)  # channels that the kernel takes (bias_add.cc)


@dataclass(frozen=True, slots=True)
class Sum:
    """x + bias + skip: what is replaced, the last node the sum."""

    nodes: tuple[ir.Node, ir.Node]
    x: ir.Value
    bias: ir.Value
    skip: ir.Value


def use_bias_add(model: ir.Model) -> int:
    """Replace two Adds of a tensor (n, l, c), of a bias (c) and a residual, in place; returns how many pairs.

    Not supported, and left as they are: channels other than `WIDTHS`, bfloat16, residuals that are broadcast, and sums
    whose first part has another use.
    """
    return replace_each(model, "Add", _match, _replace)


def _match(node: ir.Node) -> Sum | None:
    found = summands(node)
    for inner, skip in (found, found[::-1]) if found else ():
        parts = biased(inner)
        if parts is None or only_user(inner) is not node or not same_shape(inner, skip):
            continue
        x, bias = parts
        if x.dtype in KERNEL_DTYPES and channels_of(x) in WIDTHS and same_shape(x, skip):
            add = inner.producer()
            assert add is not None
            return Sum((add, node), x, bias, skip)
    return None


def _replace(graph: ir.Graph, found: Sum) -> None:
    new = Replacement(graph, str(found.nodes[-1].outputs[0].name))
    new.replace(found.nodes, new.add("BiasAdd", [found.x, found.bias, found.skip], {}, "sum", DOMAIN))
