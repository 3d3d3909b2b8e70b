"""The layers that a well fused engine makes of a graph: products with what follows them, attention, and norms.

Everything else (activations, residual sums, casts, transposes, splits, concatenations) is taken to be fused into these,
as TensorRT for RTX 1.7 does it with latentrt's graphs.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from latentrt.export.build.onnx_cost import Tensors
from latentrt.runtime import Bundle


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer as one kernel: `products` matrices (rows, depth) x (depth, columns), or bytes alone.

    Attributes:
        kind: "conv", "matmul", "attention", "norm" or "resize".
        products: independent products; 0 where nothing is multiplied.
        rows, columns, depth: of one product. Attention has the queries, the keys and the channels of a head for Q·K,
            and as many operations again for P·V.
        activations: bytes read and written.
        weights: bytes of weights read.
        bits: of an element: 16 or 32.
    """

    kind: str
    products: int
    rows: int
    columns: int
    depth: int
    activations: int
    weights: int
    bits: int

    @property
    def flops(self) -> int:
        """Operations; a multiplication and an addition are two."""
        each = 2 * self.products * self.rows * self.columns * self.depth
        return 2 * each if self.kind == "attention" else each


NORMS = ("GroupNormalization", "LayerNormalization", "InstanceNormalization")


def layers_of(file: Path, sizes: Mapping[str, int]) -> Counter[Layer]:
    """The layers of an ONNX file with inferred shapes, equal ones counted together.

    Args:
        file: the ONNX file; its weights need not be there.
        sizes: the value of each symbol in the shapes of the graph's inputs, such as `{"B": 1, "h": 64}`.

    Raises:
        ValueError: a symbol has no size, or the file lacks a shape.
    """
    graph = onnx.load(file, load_external_data=False).graph
    tensors = Tensors(graph, sizes)
    casts = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Cast"}
    found = (_layer(node, tensors, casts) for node in graph.node if node.op_type in (*_PRODUCTS, *NORMS, "Resize"))
    return Counter(found)


def graphs_of(bundle: Path, height: int, width: int, batch: int, groups: int) -> dict[str, Counter[Layer]]:
    """The layers of what is run for a picture: text encoders, "denoise" and "vae_decoder", by graph.

    Height and width are in pixels; `groups` is 2 with guidance.
    """
    opened = Bundle.open(bundle)
    model = opened.manifest.model
    sizes = {"B": batch, "G": groups, "h": height // model.vae_scale_factor, "w": width // model.vae_scale_factor}
    sizes["S"] = model.text_encoders[0].max_length
    texts = {row.graph: {"n": groups} for row in model.text_encoders}  # one prompt, and the negative one
    graphs: dict[str, dict[str, int]] = {**texts, "denoise": {}, "vae_decoder": {}}
    return {name: layers_of(opened.file(opened.graph(name).file), sizes | more) for name, more in graphs.items()}


def _layer(node: onnx.NodeProto, tensors: Tensors, casts: Mapping[str, str]) -> Layer:
    inputs, output = list(node.input), node.output[0]
    if node.op_type == "Attention":  # kernels take what is cast to float32 for it, and sum in float32
        inputs = [casts.get(name, name) for name in inputs]
    values = [name for name in (*inputs, *node.output) if name]
    activations = sum(tensors.bytes(name) for name in values if tensors.computed(name))
    weights = sum(tensors.bytes(name) for name in values if not tensors.computed(name))
    bits = 8 * tensors.bytes(inputs[0]) // math.prod(tensors.shape(inputs[0]))
    if node.op_type not in _PRODUCTS:
        return Layer("resize" if node.op_type == "Resize" else "norm", 0, 0, 0, 0, activations, weights, bits)
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    shapes = [tensors.shape(name) if name else () for name in inputs]
    product = _PRODUCTS[node.op_type](shapes, tensors.shape(output), attributes)
    return Layer(*product, activations=activations, weights=weights, bits=bits)


Shape = tuple[int, ...]
Product = tuple[str, int, int, int, int]  # kind, products, rows, columns, depth


def _matmul(inputs: list[Shape], output: Shape, _: Mapping[str, Any]) -> Product:
    left, right = inputs[:2]
    if len(right) == 2:  # weights: all rows are one product
        return "matmul", 1, math.prod(output[:-1]), output[-1], left[-1]
    return "matmul", math.prod(output[:-2]), output[-2], output[-1], left[-1]


def _gemm(inputs: list[Shape], output: Shape, attributes: Mapping[str, Any]) -> Product:
    return "matmul", 1, output[0], output[1], inputs[0][0 if attributes.get("transA") else 1]


def _conv(inputs: list[Shape], output: Shape, attributes: Mapping[str, Any]) -> Product:
    groups = attributes.get("group", 1)
    rows = output[0] * math.prod(output[2:])
    return "conv", groups, rows, output[1] // groups, math.prod(inputs[1][1:])


def _attention(inputs: list[Shape], _: Shape, attributes: Mapping[str, Any]) -> Product:
    query, key = inputs[:2]
    heads = query[1] if len(query) == 4 else attributes["q_num_heads"]
    width = query[-1] if len(query) == 4 else query[-1] // heads
    return "attention", query[0] * heads, query[-2], key[-2], width


_PRODUCTS = {"MatMul": _matmul, "Gemm": _gemm, "Conv": _conv, "Attention": _attention}
