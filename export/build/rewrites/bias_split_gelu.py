"""Replace the gate of feed-forward layers (GEGLU) by ONNX Runtime's BiasSplitGelu: one kernel in place of four.

Stable Diffusion's feed-forward layers compute a · GELU(b) of the halves (a, b) of a product of matrices and its bias.
Knows nothing of bundles.
"""

from dataclasses import dataclass

import onnx_ir as ir

from .nodes import DOMAIN, Replacement, replace_each
from .patterns import KERNEL_DTYPES, biased, channels_of, made_by, only_user, rank

# Channels of both halves that the kernel is compiled for (bias_split_gelu.cc): those of 320, 640 and 1280 channels.
WIDTHS = (2560, 5120, 10240)


@dataclass(frozen=True, slots=True)
class Gate:
    """What is replaced: the nodes, the last one the product, and their operands."""

    nodes: tuple[ir.Node, ...]
    x: ir.Value
    bias: ir.Value


def use_bias_split_gelu(model: ir.Model) -> int:
    """Replace Add (bias), Split, Gelu and Mul, in place; returns the number of replacements.

    Not supported, and left as they are: widths other than `WIDTHS`, tensors that are not (n, l, c), bfloat16, GELU by
    tanh, halves in the other order, and layers without a bias.
    """
    return replace_each(model, "Gelu", _match, _replace)


def _match(gelu: ir.Node) -> Gate | None:
    split = made_by(gelu.inputs[0], "Split")
    product = only_user(gelu.outputs[0])
    if split is None or product is None or product.op_type != "Mul" or not _halves(split):
        return None
    left, right = split.outputs
    if gelu.inputs[0] is not right or only_user(right) is not gelu or only_user(left) is not product:
        return None
    if gelu.attributes.get_string("approximate", "none") != "none":
        return None
    total = split.inputs[0]
    found = None if total is None else biased(total)
    if total is None or found is None or only_user(total) is not split:
        return None
    x, bias = found
    if x.dtype not in KERNEL_DTYPES or channels_of(x) not in WIDTHS:
        return None
    add = total.producer()
    assert add is not None
    return Gate((add, split, gelu, product), x, bias)


def _halves(split: ir.Node) -> bool:
    """Whether a Split cuts the last of three dimensions into two equal parts."""
    x = split.inputs[0]
    return (
        x is not None
        and rank(x) == 3
        and len(split.outputs) == 2
        and split.attributes.get_int("axis", 0) in (2, -1)
        and channels_of(split.outputs[0]) == channels_of(split.outputs[1])
        and channels_of(split.outputs[0]) is not None
    )


def _replace(graph: ir.Graph, gate: Gate) -> None:
    new = Replacement(graph, str(gate.nodes[-1].outputs[0].name))
    new.replace(gate.nodes, new.add("BiasSplitGelu", [gate.x, gate.bias], {}, "gated", DOMAIN))
