"""What a manifest says of a graph: its tensors and their symbols."""

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from latentrt.export.graphs.onnx_files import dtype_name
from latentrt.runtime.bundle.manifest import Graph, Range, TensorSpec
from latentrt.runtime.bundle.sizes import symbols_of
from latentrt.runtime.errors import ExportError


def graph_record(name: str, model: ir.Model, shapes: Mapping[str, Sequence[int | str]]) -> Graph:
    """The record of a graph; `shapes` replaces those of tensors whose sizes the exporter named, in place."""
    graph = model.graph
    for value in (*graph.inputs, *graph.outputs):
        if (tensor := value.name) is not None and tensor in shapes:
            value.shape = ir.Shape(shapes[tensor])
    return Graph(
        file=f"{name}.onnx",
        inputs=tuple(_spec(value) for value in graph.inputs),
        outputs=tuple(_spec(value) for value in graph.outputs),
        dimensions={symbol: Range(1, None) for symbol in _symbols(graph)},
    )


def _spec(value: ir.Value) -> TensorSpec:
    if value.shape is None or value.dtype is None or not value.name:
        raise ExportError(f"the exported graph has no shape or type for {value.name!r}")
    shape = tuple(d if isinstance(d, int) else str(d.value) for d in value.shape)
    return TensorSpec(value.name, dtype_name(value.dtype), shape)


def _symbols(graph: ir.Graph) -> list[str]:
    """Symbols of all dimensions; the product `B*G` gives B and G."""
    found: set[str] = set()
    for value in (*graph.inputs, *graph.outputs):
        for dimension in value.shape or ():
            if not isinstance(dimension, int):
                found.update(symbols_of(str(dimension.value)))
    return sorted(found)
