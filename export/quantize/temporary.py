"""Bundles that exist while another is quantized: with other graphs, and all else linked from their source."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir

from latentrt.export.graphs.onnx_files import dtype_name, float32_twin, save_graph
from latentrt.runtime.bundle import Bundle, Graph, TensorSpec
from latentrt.runtime.errors import ExportError

_HALVES = ("float16", "bfloat16")


def with_models(source: Bundle, folder: Path, models: Mapping[str, ir.Model], *, own_weights: bool) -> Bundle:
    """A bundle in a new folder with other models of some graphs, and without engines.

    Args:
        models: graph -> model; new inputs and outputs become part of the manifest.
        own_weights: write the weights of these models; else they are those of the source.
    """
    folder.mkdir()
    graphs = dict(source.manifest.graphs)
    own = [file for name in models for file in graphs[name].files[: 1 + own_weights]]
    take_others(source, folder, own, link)
    for name, model in models.items():
        path = folder / graphs[name].file
        if own_weights:
            save_graph(model, path, compact=False)
        else:
            path.write_bytes(ir.to_proto(model).SerializeToString())
        graphs[name] = _graph(graphs[name], model)
    return Bundle(folder, replace(source.manifest, graphs=graphs, engines=()))


def in_float32(source: Bundle, folder: Path) -> Bundle:
    """The same bundle in float32, in a new folder: what its graphs compute, without their rounding."""
    folder.mkdir()
    manifest = source.manifest
    take_others(source, folder, [file for graph in manifest.graphs.values() for file in graph.files], link)
    for graph in manifest.graphs.values():
        float32_twin(source.file(graph.file), folder / graph.file)
    graphs = {
        name: replace(graph, inputs=_full(graph.inputs), outputs=_full(graph.outputs))
        for name, graph in manifest.graphs.items()
    }
    recipe = replace(manifest.recipe, precision="fp32", vae_precision="fp32")
    return Bundle(folder, replace(manifest, graphs=graphs, recipe=recipe, engines=()))


def is_float32(bundle: Bundle) -> bool:
    """Whether all of a bundle is float32."""
    return {bundle.manifest.recipe.precision, bundle.manifest.recipe.vae_precision} == {"fp32"}


def _full(tensors: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
    return tuple(replace(tensor, dtype="float32") if tensor.dtype in _HALVES else tensor for tensor in tensors)


def _graph(graph: Graph, model: ir.Model) -> Graph:
    sides = []
    for known, values in ((graph.inputs, model.graph.inputs), (graph.outputs, model.graph.outputs)):
        names = {tensor.name for tensor in known}
        sides.append((*known, *(_spec(value) for value in values if value.name not in names)))
    return replace(graph, inputs=sides[0], outputs=sides[1])


def _spec(value: ir.Value) -> TensorSpec:
    if value.shape is None or value.dtype is None:
        raise ExportError(f"{value.name} has no shape or type")
    return TensorSpec(str(value.name), dtype_name(value.dtype), tuple(int(size) for size in value.shape.numpy()))


def take_others(source: Bundle, folder: Path, own: Collection[str], take: Callable[[Path, Path], object]) -> None:
    """`take(file, place)` of all files of a bundle but its engines and `own`, into another folder."""
    for name in source.manifest.files:
        if name not in own and not name.startswith("engines/"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            take(source.file(name), folder / name)


def link(file: Path, place: Path) -> None:
    """Make `place` a link to a file."""
    place.symlink_to(file.resolve())
