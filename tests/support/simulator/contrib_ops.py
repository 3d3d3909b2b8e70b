"""Replaces ONNX Runtime's own operators, of which there are kernels only for GPUs, by others that run on a CPU.

Enforces the limits of the CUDA kernels, which raise errors at run time.
"""

from collections.abc import Callable, Iterator, Sequence

import onnx
from onnx import TensorProto, helper

from .cuda import Fault

DOMAIN = "com.microsoft"
# Channels that kernels are compiled for; tests of small models allow others.
WIDTHS_OF_GATES = {2560, 5120, 10240}
WIDTHS_OF_SUMS = {320, 640, 1280}


def with_contrib_ops_expanded(model: bytes) -> bytes:
    """The model with each operator that has no CPU kernel expanded to standard ones; all else is unchanged."""
    proto = onnx.load_model_from_string(model)
    graph = proto.graph
    shapes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    casts = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Cast"}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        expand = EXPANSIONS.get(node.op_type) if node.domain == DOMAIN else None
        nodes += [node] if expand is None else expand(Expansion(node, shapes, casts))
    del graph.node[:]
    graph.node.extend(nodes)
    data: bytes = proto.SerializeToString()
    return data


class Expansion:
    """A node to expand; makes the nodes that replace it."""

    def __init__(self, node: onnx.NodeProto, shapes: dict[str, list[int]], casts: dict[str, str]) -> None:
        self.node, self.inputs = node, list(node.input)
        self.facts = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        self._shapes, self._casts = shapes, casts

    def channels(self, weight: str) -> int:
        """The number of values of a vector of weights."""
        (channels,) = self._shapes[self._casts.get(weight, weight)]
        return channels

    def refuse(self, why: str) -> None:
        """Raise what the kernel would."""
        raise Fault(f"{self.node.op_type} in CUDA does not support the input: {why}")

    def of(self, op: str, inputs: Sequence[str], *outputs: str, **attributes: object) -> onnx.NodeProto:
        """A node whose outputs are inner values."""
        return helper.make_node(op, inputs, [self.at(output) for output in outputs], **attributes)

    def last(self, op: str, inputs: Sequence[str], **attributes: object) -> onnx.NodeProto:
        """A node with the expanded node's first output."""
        return helper.make_node(op, inputs, self.node.output[:1], **attributes)

    def at(self, name: str) -> str:
        """The full name of an inner value."""
        return f"{self.node.output[0]}/{name}"

    def constant(self, output: str, values: list[int]) -> onnx.NodeProto:
        """A vector of integers."""
        tensor = helper.make_tensor(output, TensorProto.INT64, [len(values)], values)
        return self.of("Constant", [], output, value=tensor)


def _group_norm(node: Expansion) -> Iterator[onnx.NodeProto]:
    x, gamma, beta = node.inputs
    yield from _norm(node, x, gamma, beta)


def _skip_group_norm(node: Expansion) -> Iterator[onnx.NodeProto]:
    x, gamma, beta, skip = node.inputs
    total = node.node.output[1] if len(node.node.output) > 1 else node.at("total")
    # The skip is (n, h, w, c) or, one row for all pixels, (n, c).
    yield node.constant("rows", [0, -1, node.channels(gamma)])
    yield node.of("Reshape", [x, node.at("rows")], "rows of x")
    yield node.of("Reshape", [skip, node.at("rows")], "rows of skip")
    yield node.of("Add", [node.at("rows of x"), node.at("rows of skip")], "rows of both")
    yield node.of("Shape", [x], "shape of x")
    yield helper.make_node("Reshape", [node.at("rows of both"), node.at("shape of x")], [total])
    yield from _norm(node, total, gamma, beta)


def _norm(node: Expansion, x: str, gamma: str, beta: str) -> Iterator[onnx.NodeProto]:
    facts, of, at = node.facts, node.of, node.at
    channels, groups = node.channels(gamma), int(facts["groups"])
    each = channels // groups
    if facts["channels_last"] != 1 or channels % groups or each % 2 or each > 512:
        node.refuse(f"c={channels} groups={groups}")
    yield of("Cast", [x], "x", to=TensorProto.FLOAT)
    yield of("Shape", [x], "shape")
    yield node.constant("grouped shape", [0, -1, groups, each])
    yield node.constant("axes", [1, 3])
    yield of("Reshape", [at("x"), at("grouped shape")], "grouped")
    yield of("ReduceMean", [at("grouped"), at("axes")], "mean")
    yield of("Sub", [at("grouped"), at("mean")], "centred")
    yield of("Mul", [at("centred"), at("centred")], "squares")
    yield of("ReduceMean", [at("squares"), at("axes")], "variance")
    yield of("Constant", [], "epsilon", value_float=facts["epsilon"])
    yield of("Add", [at("variance"), at("epsilon")], "positive")
    yield of("Sqrt", [at("positive")], "deviation")
    yield of("Div", [at("centred"), at("deviation")], "normal")
    yield of("Reshape", [at("normal"), at("shape")], "unscaled")
    yield of("Mul", [at("unscaled"), gamma], "scaled")
    yield of("Add", [at("scaled"), beta], "moved")
    if facts["activation"] == 1:
        yield of("Sigmoid", [at("moved")], "gate")
        yield of("Mul", [at("moved"), at("gate")], "silu")
    yield node.last("CastLike", [at("silu" if facts["activation"] == 1 else "moved"), x])


def _bias_split_gelu(node: Expansion) -> Iterator[onnx.NodeProto]:
    x, bias = node.inputs
    if (width := node.channels(bias)) not in WIDTHS_OF_GATES:
        node.refuse(f"hidden size should be 2560, 5120 or 10240, got {width}")
    yield node.of("Add", [x, bias], "both")
    yield node.of("Split", [node.at("both")], "left", "right", axis=2, num_outputs=2)
    yield node.of("Gelu", [node.at("right")], "gate")
    yield node.last("Mul", [node.at("left"), node.at("gate")])


def _bias_add(node: Expansion) -> Iterator[onnx.NodeProto]:
    x, bias, skip = node.inputs
    if (width := node.channels(bias)) not in WIDTHS_OF_SUMS:
        node.refuse(f"number of channels should be 320, 640 or 1280, got {width}")
    yield node.of("Add", [x, bias], "biased")
    yield node.last("Add", [node.at("biased"), skip])


def _multi_head_attention(node: Expansion) -> Iterator[onnx.NodeProto]:
    """Only packed queries, keys and values (n, l, heads, 3, d) have no kernel on CPUs."""
    if len(node.inputs) > 1:
        yield node.node
        return
    names = ("query", "key", "value")
    yield node.of("Split", node.inputs, *(f"{name} of heads" for name in names), axis=3, num_outputs=3)
    yield node.constant("rows", [0, 0, -1])
    for name in names:
        yield node.of("Reshape", [node.at(f"{name} of heads"), node.at("rows")], name)
    facts = {name: value for name, value in node.facts.items() if name in ("num_heads", "scale")}
    yield node.last("MultiHeadAttention", [node.at(name) for name in names], domain=DOMAIN, **facts)


EXPANSIONS: dict[str, Callable[[Expansion], Iterator[onnx.NodeProto]]] = {
    "GroupNorm": _group_norm,
    "SkipGroupNorm": _skip_group_norm,
    "BiasSplitGelu": _bias_split_gelu,
    "BiasAdd": _bias_add,
    "MultiHeadAttention": _multi_head_attention,
}
