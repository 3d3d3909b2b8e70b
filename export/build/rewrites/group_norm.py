"""Replace ONNX's GroupNormalization by ONNX Runtime's GroupNorm: channels last, with SiLU, and with a CUDA kernel.

ONNX Runtime has no CUDA kernel for GroupNormalization and decomposes it into about twenty nodes. Knows nothing of
bundles.
"""

import onnx_ir as ir

from .nodes import DOMAIN, Replacement, replace_each

# In earlier opsets, scale and bias of GroupNormalization are per group.
PER_CHANNEL_OPSET = 21
MOST_CHANNELS_OF_A_GROUP = 512  # the limit of one thread block of the kernel


def use_ort_group_norms(model: ir.Model) -> int:
    """Replace each GroupNormalization that the kernel supports, with a SiLU that follows it, in place.

    Returns the number of replacements. Not supported, and left as they are: bfloat16, an odd number of channels per
    group, more than 512 channels per group, scales per group (before opset 21), and inputs that are neither (n, c, l)
    nor (n, c, h, w).
    """
    if model.opset_imports.get("", 0) < PER_CHANNEL_OPSET:
        return 0
    return replace_each(model, "GroupNormalization", lambda node: node if _has_kernel(node) else None, _replace)


def _has_kernel(node: ir.Node) -> bool:
    x, scale, bias = node.inputs
    if x is None or scale is None or bias is None or x.shape is None or len(x.shape) not in (3, 4):
        return False
    channels, groups = x.shape[1], node.attributes["num_groups"].as_int()
    if not isinstance(channels, int) or channels % groups:
        return False
    each = channels // groups
    return (
        x.dtype in (ir.DataType.FLOAT, ir.DataType.FLOAT16)
        and node.attributes.get_int("stash_type", 1) == ir.DataType.FLOAT
        # Each thread of the kernel computes two channels of a group.
        and each % 2 == 0
        and each <= MOST_CHANNELS_OF_A_GROUP
        and all(value.shape is not None and list(value.shape) == [channels] for value in (scale, bias))
    )


def _replace(graph: ir.Graph, node: ir.Node) -> None:
    x, scale, bias = (value for value in node.inputs if value is not None)
    assert x.shape is not None
    silu = _silu_of(node.outputs[0])
    new = Replacement(graph, str(node.outputs[0].name))
    gamma, beta = (
        value if value.dtype == ir.DataType.FLOAT else new.add("Cast", [value], {"to": int(ir.DataType.FLOAT)}, what)
        for value, what in ((scale, "gamma"), (bias, "beta"))
    )
    flat = len(x.shape) == 3
    last = new.add("Transpose", [x], {"perm": [0, 2, 1] if flat else [0, 2, 3, 1]}, "channels_last")
    if flat:  # (n, l, c) to (n, 1, l, c)
        axis = new.integers([1], "height")
        last = new.add("Unsqueeze", [last, axis], {}, "unsqueezed")
    attributes: dict[str, int | float] = {
        "groups": node.attributes["num_groups"].as_int(),
        "epsilon": node.attributes.get_float("epsilon", 1e-5),
        "channels_last": 1,
        "activation": int(bool(silu)),
    }
    result = new.add("GroupNorm", [last, gamma, beta], attributes, "normalized", DOMAIN)
    if flat:
        result = new.add("Squeeze", [result, axis], {}, "squeezed")
    result = new.add("Transpose", [result], {"perm": [0, 2, 1] if flat else [0, 3, 1, 2]}, "channels_first")
    new.replace([node, *silu], result)


def _silu_of(value: ir.Value) -> tuple[ir.Node, ...]:
    """The nodes that compute x · sigmoid(x) of a value, the result's last; empty if the value has any other use."""
    users = {node.op_type: node for node, _ in value.uses()}
    if value.is_graph_output():
        return ()
    if users.keys() == {"Swish"} and len(value.uses()) == 1:  # ONNX's SiLU, from opset 24
        swish = users["Swish"]
        return (swish,) if swish.attributes.get_float("alpha", 1.0) == 1.0 else ()
    if users.keys() != {"Sigmoid", "Mul"} or len(value.uses()) != 2:
        return ()
    gate = users["Sigmoid"].outputs[0]
    alone = len(gate.uses()) == 1 and not gate.is_graph_output()
    return (users["Sigmoid"], users["Mul"]) if alone and gate in users["Mul"].inputs else ()
