"""What an engine's layers say of how a graph was fused, and where its time probably goes.

Knows neither libraries nor bundles.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from .fusible import Fusible
from .layers import Layer, LayerTensor

# Operations in the time of a byte, on tensor cores in 16 bits: 165 on an RTX 4090 and 236 on an H100 by their rates.
OPERATIONS_PER_BYTE = 200
_8_BITS = ("fp8", "int8")
_COPIES = {"Cast", "Conc", "Move", "Repl", "Resh", "Slic", "Tran"}  # parts of names of generated kernels


@dataclass(frozen=True, slots=True)
class Row:
    """A layer and its cost.

    Attributes:
        kernel: the name of its kernel, or the layer's kind where the kernel is chosen later.
        precision: the type that it writes, such as "fp16".
        nodes: the ONNX nodes that it computes, or a part of them.
        weights, activations: bytes that it reads and writes; None where sizes are not static.
        flops: floating-point operations.
        share: its part of the predicted time of the engine, from 0 to 1.
    """

    name: str
    kind: str
    kernel: str
    precision: str
    nodes: tuple[str, ...]
    weights: int
    activations: int | None
    flops: int
    share: float


@dataclass(frozen=True, slots=True)
class Tally:
    """How many parts of a kind are fused, and the ONNX nodes of those that are not."""

    parts: int
    fused: int
    others: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Fusion:
    """An engine's layers, the most expensive first, and what they say.

    Attributes:
        attention: attentions in a fused kernel.
        group_norm: norms with SiLU in one kernel.
        geglu: GELUs in the kernel of a matrix product.
        quantized: products of a quantized graph in kernels that read 8 bits.
        copies: layers that only copy, cast, or change the order of what they read.
        copied: their bytes; None where sizes are not static.
        flops: all floating-point operations of the graph.
    """

    attention: Tally
    group_norm: Tally
    geglu: Tally
    quantized: Tally
    copies: int
    copied: int | None
    flops: int
    rows: tuple[Row, ...]


def fusion_of(layers: Sequence[Layer], parts: Fusible, flops: Mapping[str, int]) -> Fusion:
    """Compare layers with the graph that they were built from.

    Args:
        parts: of the graph.
        flops: operations of the graph's nodes, by name.
    """
    computing: dict[str, list[Layer]] = {}
    for layer in layers:
        for node in layer.nodes:
            computing.setdefault(node, []).append(layer)
    copies = [layer for layer in layers if _copies(layer)]
    return Fusion(
        attention=_tally(parts.attentions, lambda node: any(map(_is_fused_attention, computing.get(node, ())))),
        group_norm=_tally(parts.group_norms, lambda node: _in_one(node, parts.group_norms[node], computing)),
        geglu=_tally(parts.gelus, lambda node: any(_is_product(layer, parts) for layer in computing.get(node, ()))),
        quantized=_tally(parts.quantized, lambda node: any(map(_reads_8_bits, computing.get(node, ())))),
        copies=len(copies),
        copied=_sum(map(_activations, copies)),
        flops=sum(flops.values()),
        rows=_rows(layers, _placed(flops, computing)),
    )


def _tally(parts: Iterable[str], is_fused: Callable[[str], bool]) -> Tally:
    names = tuple(parts)
    others = tuple(name for name in names if not is_fused(name))
    return Tally(len(names), len(names) - len(others), others)


def _is_fused_attention(layer: Layer) -> bool:
    return "mha" in f"{layer.name} {layer.tactic}".lower()


def _is_product(layer: Layer, parts: Fusible) -> bool:
    """A generated kernel may have a product's name too, if it multiplies with the scale of a quantized one."""
    return layer.kind != "kgen" and not parts.products.isdisjoint(layer.nodes)


def _reads_8_bits(layer: Layer) -> bool:
    return _computes_products(layer) > 1 and any(tensor.dtype in _8_BITS for tensor in layer.inputs)


def _in_one(norm: str, silu: str, computing: Mapping[str, Sequence[Layer]]) -> bool:
    """Whether one layer computes both; what has no inputs only sets counters for it."""
    working = [layer for layer in computing.get(norm, ()) if layer.inputs]
    return len(working) == 1 and silu in working[0].nodes


def _copies(layer: Layer) -> bool:
    generated = re.match(r"__myl_([A-Za-z]+)_myl\d", layer.name)
    if generated is not None:
        return {*re.findall("[A-Z][a-z]*", generated[1])} <= _COPIES
    return layer.kind.lower() in ("reformat", "shuffle", "copy")


def _placed(flops: Mapping[str, int], computing: Mapping[str, Sequence[Layer]]) -> dict[int, int]:
    """Operations by the identity of a layer: each node's count for the layer that most likely computes it."""
    placed: dict[int, int] = {}
    for node, count in flops.items():
        if computing.get(node):
            layer = max(computing[node], key=_computes_products)
            placed[id(layer)] = placed.get(id(layer), 0) + count
    return placed


def _computes_products(layer: Layer) -> int:
    return 2 if _is_fused_attention(layer) else int(not _copies(layer)) + int(layer.kind != "kgen")


def _rows(layers: Sequence[Layer], placed: Mapping[int, int]) -> tuple[Row, ...]:
    costs = []
    for layer in layers:
        moved = _sum([_activations(layer), _weights(layer)])
        costs.append(max(placed.get(id(layer), 0) / OPERATIONS_PER_BYTE, moved or 0))
    total = sum(costs) or 1.0
    rows = [
        Row(
            name=layer.name,
            kind=layer.kind,
            kernel=layer.tactic or layer.kind,
            precision=layer.outputs[0].dtype if layer.outputs else "",
            nodes=layer.nodes,
            weights=_weights(layer),
            activations=_activations(layer),
            flops=placed.get(id(layer), 0),
            share=cost / total,
        )
        for layer, cost in zip(layers, costs, strict=True)
    ]
    return tuple(sorted(rows, key=lambda row: -row.share))


def _weights(layer: Layer) -> int:
    return sum(tensor.bytes or 0 for tensor in layer.constants)


def _activations(layer: Layer) -> int | None:
    return _sum(map(_bytes, (*layer.inputs, *layer.outputs)))


def _bytes(tensor: LayerTensor) -> int | None:
    return tensor.bytes


def _sum(sizes: Iterable[int | None]) -> int | None:
    known = list(sizes)
    return None if None in known else sum(size or 0 for size in known)
