"""The floating-point operations and bytes of ONNX graphs at given sizes.

Counts MatMul, Gemm, Conv and Attention from the shapes in the ONNX file; a multiplication and an addition are two
operations. All other operators are cheap, and a good engine fuses them into these. Knows nothing of bundles.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

Shape = tuple[int, ...]
OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.FloorDiv: operator.floordiv}


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of one run of a graph.

    Attributes:
        flops: floating-point operations by operator.
        weights: bytes of all initializers as stored, each read once.
        edges: bytes of the graph's inputs and outputs.
        activations: bytes that the counted operators read and write, without weights. This is the traffic when
            everything between two products is fused and nothing stays in a cache.
    """

    flops: dict[str, int]
    weights: int
    edges: int
    activations: int

    def seconds(self, flops_per_second: float, bytes_per_second: float) -> float:
        """The floor: no implementation is faster on a machine with these rates."""
        return max(sum(self.flops.values()) / flops_per_second, (self.weights + self.edges) / bytes_per_second)


def cost_of(file: Path, sizes: Mapping[str, int]) -> Cost:
    """The cost of an ONNX file.

    Args:
        file: an ONNX file with inferred shapes.
        sizes: the value of each symbol in the shapes of the graph's inputs, such as `{"B": 1, "h": 64}`.

    Raises:
        ValueError: a symbol has no size, or the file lacks a shape of a counted operator.
    """
    graph = onnx.load(file, load_external_data=False).graph
    tensors = Tensors(graph, sizes)
    flops: dict[str, int] = {}
    activations = 0
    for node, count in _counted(graph, tensors):
        flops[node.op_type] = flops.get(node.op_type, 0) + count
        activations += sum(tensors.bytes(name) for name in (*node.input, *node.output) if tensors.computed(name))
    edges = sum(tensors.bytes(value.name) for value in (*graph.input, *graph.output))
    return Cost(flops, sum(map(_stored_bytes, graph.initializer)), edges, activations)


def node_flops(graph: onnx.GraphProto, sizes: Mapping[str, int]) -> dict[str, int]:
    """The floating-point operations of each counted node, by its name; `sizes` and errors as in `cost_of`."""
    return {node.name: count for node, count in _counted(graph, Tensors(graph, sizes))}


def _counted(graph: onnx.GraphProto, tensors: Tensors) -> Iterator[tuple[onnx.NodeProto, int]]:
    for node in graph.node:
        if node.op_type in FLOPS:
            shapes = [tensors.shape(name) if name else () for name in node.input]
            attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            yield node, FLOPS[node.op_type](shapes, tensors.shape(node.output[0]), attributes)


def _matmul(inputs: list[Shape], output: Shape, _: Mapping[str, Any]) -> int:
    return 2 * math.prod(output) * inputs[0][-1]


def _gemm(inputs: list[Shape], output: Shape, attributes: Mapping[str, Any]) -> int:
    return 2 * math.prod(output) * inputs[0][0 if attributes.get("transA") else 1]


def _conv(inputs: list[Shape], output: Shape, _: Mapping[str, Any]) -> int:
    return 2 * math.prod(output) * math.prod(inputs[1][1:])  # weights are (out, in / groups, *kernel)


def _attention(inputs: list[Shape], output: Shape, attributes: Mapping[str, Any]) -> int:
    """Q·K and P·V. Heads are a separate dimension, or part of the last one; the count is the same."""
    query, key = inputs[:2]
    heads = query[1] if len(query) == 4 else attributes["q_num_heads"]
    widths = query[-1] + output[-1] if len(query) == 4 else (query[-1] + output[-1]) // heads
    return 2 * query[0] * heads * query[-2] * key[-2] * widths


FLOPS = {"MatMul": _matmul, "Gemm": _gemm, "Conv": _conv, "Attention": _attention}


class Tensors:
    """Shapes and bytes of a graph's tensors at given sizes."""

    def __init__(self, graph: onnx.GraphProto, sizes: Mapping[str, int]) -> None:
        self._sizes = dict(sizes)
        if {"B", "G"} <= sizes.keys():
            self._sizes.setdefault("n", sizes["B"] * sizes["G"])  # rows of the UNet inside `denoise`
        self._values = {
            value.name: value.type.tensor_type for value in (*graph.value_info, *graph.input, *graph.output)
        }
        self._weights = {tensor.name: tensor for tensor in graph.initializer}

    def computed(self, name: str) -> bool:
        """Whether a tensor is no initializer."""
        return bool(name) and name not in self._weights

    def shape(self, name: str) -> Shape:
        """The shape of a tensor; `ValueError` if the file has none."""
        if name in self._weights:
            return tuple(self._weights[name].dims)
        if name not in self._values:
            raise ValueError(f"the file has no shape for {name!r}: export it again")
        dims = self._values[name].shape.dim
        return tuple(d.dim_value if not d.dim_param else evaluated(d.dim_param, self._sizes) for d in dims)

    def bytes(self, name: str) -> int:
        """The bytes of a tensor."""
        if name in self._weights:
            return _stored_bytes(self._weights[name])
        kind = onnx.helper.tensor_dtype_to_np_dtype(self._values[name].elem_type)
        return math.prod(self.shape(name)) * int(kind.itemsize)


def evaluated(expression: str, sizes: Mapping[str, int]) -> int:
    """The value of a dimension such as `2*(h//2) + 1`; `ValueError` for unknown symbols or operators."""

    def value(node: ast.expr) -> int:
        match node:
            case ast.Constant(value=int(number)):
                return number
            case ast.Name(id=name) if name in sizes:
                return sizes[name]
            case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
                return int(OPERATORS[type(op)](value(left), value(right)))
        raise ValueError(
            f"cannot evaluate {ast.unparse(node)!r} in the dimension {expression!r}; known symbols: {dict(sizes)}"
        )

    return value(ast.parse(expression, mode="eval").body)


def _stored_bytes(tensor: onnx.TensorProto) -> int:
    kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    return int(math.prod(tensor.dims) * kind.itemsize)
