"""Write a control bundle: export its graphs, compare them with PyTorch, then move the finished folder into place."""

import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from latentrt.export.graph_records import graph_record
from latentrt.export.graphs.onnx_export import check_opset
from latentrt.export.graphs.onnx_files import save_graph
from latentrt.export.graphs.precision import dtype_of
from latentrt.export.new_bundle import new_bundle, require_free
from latentrt.export.producer import this_producer
from latentrt.runtime.bundle import ControlBundle, ControlManifest, hashed_files
from latentrt.runtime.bundle.control_manifest import CONTROL_FORMAT
from latentrt.runtime.bundle.manifest import MANIFEST, Graph, Recipe, manifest_json

from .making import model_of
from .parity import check_and_make_golden
from .source import ControlCheckpoint, ControlSource

logger = logging.getLogger(__name__)

STAGES = ("weights", "graphs", "parity with PyTorch", "hashes")


@dataclass(frozen=True, slots=True)
class ControlOptions:
    """User options.

    Attributes:
        precision: "fp32", "fp16" or "bf16": that of the checkpoint's bundle that it will steer.
        opset: ONNX opset, 23 or 18.
        overwrite: replace an existing folder.
    """

    precision: str = "fp16"
    opset: int = 23
    overwrite: bool = False


def export_control(
    source: ControlSource | Path | str,
    out: Path | str,
    options: ControlOptions | None = None,
    *,
    progress: Callable[[str], object] = lambda _: None,
) -> ControlBundle:
    """Export a ControlNet or an adapter to the control bundle `out`.

    Args:
        source: folder of diffusers, single file, or Hub id.
        progress: called with each of `STAGES` when it begins.

    Raises `CheckpointError` if it cannot be read, `ParityError` if a graph differs from PyTorch, and `ExportError` for
    other failures. On an error nothing of the new bundle remains, and an old one is unchanged.
    """
    options, out = options or ControlOptions(), Path(out)
    dtype = dtype_of(options.precision)
    check_opset(options.opset)
    require_free(out, overwrite=options.overwrite)
    progress(STAGES[0])
    checkpoint = ControlCheckpoint(source if isinstance(source, ControlSource) else ControlSource(str(source)))
    needs = "A control bundle needs about as much space as its weights."
    with new_bundle(out, "export", needs) as folder, ThreadPoolExecutor(1) as pool:
        record = pool.submit(checkpoint.record)  # hashed meanwhile
        model = model_of(checkpoint, dtype)
        progress(STAGES[1])
        graphs = {name: _save(folder, name, *made) for name, made in model.graphs(options.opset).items()}
        progress(STAGES[2])
        golden = check_and_make_golden(folder, checkpoint.kind, graphs, model, options.precision)
        progress(STAGES[3])
        manifest = ControlManifest(
            format=CONTROL_FORMAT,
            kind=checkpoint.kind,
            producer=this_producer(),
            checkpoint=record.result(),
            recipe=Recipe(options.precision, options.precision, options.opset, compact=False),
            **model.facts,
            graphs=graphs,
            engines=(),
            golden=golden,
            files=hashed_files(folder),
        )
        (folder / MANIFEST).write_text(manifest_json(manifest), encoding="utf-8")
    return ControlBundle.open(out)


def _save(folder: Path, name: str, graph: ir.Model, shapes: Mapping[str, Any]) -> Graph:
    record = graph_record(name, graph, shapes)
    save_graph(graph, folder / f"{name}.onnx", compact=False)
    return record
