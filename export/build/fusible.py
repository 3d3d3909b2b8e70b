"""The parts of an ONNX graph that a good engine computes in one kernel each: attention, norms with SiLU, GELU.

And the products of a quantized graph, which a good engine computes in 8 bits.

Knows nothing of engines.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import onnx

_NORMS = ("GroupNormalization", "InstanceNormalization")
_PRODUCTS = ("MatMul", "Gemm")
_DEQUANTIZE = "DequantizeLinear"
_ELEMENTWISE = ("Add", "Mul", "Div", "Cast", "Where")


@dataclass(frozen=True, slots=True, eq=False)
class Fusible:
    """Names of nodes.

    Attributes:
        attentions: Attention, and Softmax between two matrix products.
        group_norms: a norm of groups -> the activation behind it, Sigmoid or Swish; norms without one are left out.
        gelus: Gelu, which gates a linear layer in GEGLU.
        products: matrix products.
        quantized: convolutions and matrix products of two tensors that were quantized.
    """

    attentions: tuple[str, ...]
    group_norms: dict[str, str]
    gelus: tuple[str, ...]
    products: frozenset[str]
    quantized: tuple[str, ...]


def fusible_parts(graph: onnx.GraphProto) -> Fusible:
    """Find the parts in a graph whose nodes have names."""
    made = {name: node for node in graph.node for name in node.output}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    written_out = (n for n in graph.node if n.op_type == "Softmax" and _is_attention(n, made, readers))
    return Fusible(
        attentions=tuple(
            [node.name for node in graph.node if node.op_type == "Attention"] + [node.name for node in written_out]
        ),
        group_norms=dict(_norms_with_silu(graph, readers)),
        gelus=tuple(node.name for node in graph.node if node.op_type == "Gelu"),
        products=frozenset(node.name for node in graph.node if node.op_type in _PRODUCTS),
        quantized=tuple(node.name for node in graph.node if _is_quantized(node, made)),
    )


def _is_quantized(node: onnx.NodeProto, made: dict[str, onnx.NodeProto]) -> bool:
    makers = [made.get(name) for name in node.input[:2]]
    return node.op_type in (*_PRODUCTS, "Conv") and all(m is not None and m.op_type == _DEQUANTIZE for m in makers)


def _is_attention(
    softmax: onnx.NodeProto, made: dict[str, onnx.NodeProto], readers: dict[str, list[onnx.NodeProto]]
) -> bool:
    """Whether elementwise operations are all that stands between the softmax and two products."""
    before: onnx.NodeProto | None = softmax
    while before is not None and before.op_type not in _PRODUCTS:
        if before is not softmax and before.op_type not in _ELEMENTWISE:
            return False
        before = next((made[name] for name in before.input if name in made), None)
    behind = readers.get(softmax.output[0], [])
    while behind and behind[0].op_type == "Cast":
        behind = readers.get(behind[0].output[0], [])
    return before is not None and any(node.op_type in _PRODUCTS for node in behind)


def _norms_with_silu(graph: onnx.GraphProto, readers: dict[str, list[onnx.NodeProto]]) -> Iterator[tuple[str, str]]:
    """Each norm and its activation, also where its scale, a reshape or a cast stands between them."""
    for norm in graph.node:
        if norm.op_type not in _NORMS:
            continue
        behind = readers.get(norm.output[0], [])
        while len(behind) == 1 and behind[0].op_type in ("Cast", "Reshape", "Mul", "Add"):
            behind = readers.get(behind[0].output[0], [])
        silu = next((node.name for node in behind if node.op_type in ("Sigmoid", "Swish")), None)
        if silu is not None:
            yield norm.name, silu
