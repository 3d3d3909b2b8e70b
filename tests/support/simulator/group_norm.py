"""Replaces `com.microsoft.GroupNorm`, which onnxruntime implements only for GPUs, by standard ONNX operators.

Enforces the limits of the CUDA kernel, which raises errors at run time.
"""

from collections.abc import Iterator

import onnx
from onnx import TensorProto, helper

from .cuda import Fault


def with_group_norms_expanded(model: bytes) -> bytes:
    """The model with each `com.microsoft.GroupNorm` expanded to twenty nodes; all else is unchanged."""
    proto = onnx.load_model_from_string(model)
    graph = proto.graph
    shapes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    casts = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Cast"}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.domain == "com.microsoft" and node.op_type == "GroupNorm":
            gamma = node.input[1]
            _require_kernel(node, shapes[casts.get(gamma, gamma)])
            nodes += _expanded(node)
        else:
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    data: bytes = proto.SerializeToString()
    return data


def _facts(node: onnx.NodeProto) -> dict[str, float]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def _require_kernel(node: onnx.NodeProto, gamma_shape: list[int]) -> None:
    facts = _facts(node)
    (channels,), groups = gamma_shape, int(facts["groups"])
    each = channels // groups
    if facts["channels_last"] != 1 or channels % groups or each % 2 or each > 512:
        raise Fault(f"GroupNorm in CUDA does not support the input: c={channels} groups={groups}")


def _expanded(node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
    facts, name = _facts(node), node.output[0]
    x, gamma, beta = node.input

    def of(op: str, inputs: list[str], output: str, **attributes: object) -> onnx.NodeProto:
        return helper.make_node(op, inputs, [f"{name}/{output}"], **attributes)

    def constant(output: str, values: list[int]) -> onnx.NodeProto:
        tensor = helper.make_tensor(output, TensorProto.INT64, [len(values)], values)
        return of("Constant", [], output, value=tensor)

    def at(*outputs: str) -> list[str]:
        return [f"{name}/{output}" for output in outputs]

    yield of("Cast", [x], "x", to=TensorProto.FLOAT)
    yield of("Shape", [x], "shape")
    yield of("Shape", [gamma], "channels")
    yield constant("groups", [int(facts["groups"])])
    yield constant("pixels", [0, -1])
    yield constant("axes", [1, 3])
    yield of("Div", at("channels", "groups"), "each")
    yield of("Concat", at("pixels", "groups", "each"), "grouped shape", axis=0)
    yield of("Reshape", at("x", "grouped shape"), "grouped")
    yield of("ReduceMean", at("grouped", "axes"), "mean")
    yield of("Sub", at("grouped", "mean"), "centred")
    yield of("Mul", at("centred", "centred"), "squares")
    yield of("ReduceMean", at("squares", "axes"), "variance")
    yield of("Constant", [], "epsilon", value_float=facts["epsilon"])
    yield of("Add", at("variance", "epsilon"), "positive")
    yield of("Sqrt", at("positive"), "deviation")
    yield of("Div", at("centred", "deviation"), "normal")
    yield of("Reshape", at("normal", "shape"), "unscaled")
    yield of("Mul", [*at("unscaled"), gamma], "scaled")
    yield of("Add", [*at("scaled"), beta], "moved")
    if facts["activation"] == 1:
        yield of("Sigmoid", at("moved"), "gate")
        yield of("Mul", at("moved", "gate"), "silu")
    yield helper.make_node("CastLike", [*at("silu" if facts["activation"] == 1 else "moved"), x], [name])
