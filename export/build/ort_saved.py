"""Save a bundle's graphs as ONNX Runtime optimizes them for this CPU: which graphs, and from which files."""

import logging
import time
from dataclasses import replace
from pathlib import Path

from latentrt.runtime.backends.ort.saved_graphs import instructions_here, save_graph, version_here
from latentrt.runtime.backends.ort.session import GraphFile
from latentrt.runtime.bundle import AnyBundle, EngineRecord
from latentrt.runtime.bundle.manifest import INSTRUCTIONS

from .store import Built, add_saved_graph, built_before, require_storable, with_file

logger = logging.getLogger(__name__)


def can_save(bundle: AnyBundle) -> bool:
    """Whether a bundle's graphs can be saved here. In fp32 alone: others are not meant for this library on CPUs.

    Where this machine is the reason that they cannot, a warning says so.
    """
    if bundle.manifest.recipe.precision != "fp32":
        return False
    if version_here() is None:
        missing = "onnxruntime is not installed: pip install 'latentrt[cpu]'"
    elif not instructions_here():
        missing = "this system does not say which instructions its CPU has, so nothing would tell where they fit"
    else:
        return True
    logger.warning("no graphs are saved for the CPU, and sessions take longer to load: %s", missing)
    return False


def save_built(bundle: AnyBundle, engines: Path | None, rewritten: EngineRecord, *, is_rewritten: bool) -> Built | None:
    """The saved graph, made if it is missing; None for a graph that would not load faster.

    Args:
        rewritten: the record of the rewritten graph.
        is_rewritten: whether there is one; else the exported graph is saved.
    """
    exported = bundle.file(bundle.graph(rewritten.graph).file)
    if not _has_convolutions(exported):
        return None
    options = rewritten.options | {INSTRUCTIONS: instructions_here()}
    record = with_file(replace(rewritten, file="", version=version_here() or "", options=options), "onnx")
    if (before := built_before(bundle.path, engines, record)) is not None:
        return before
    require_storable(bundle.path, engines)
    began = time.perf_counter()
    folder = bundle.path if engines is None else engines
    source = GraphFile(
        folder / rewritten.file if is_rewritten else exported, exported.with_name(f"{exported.name}.data")
    )
    spec = bundle.graph(record.graph)

    def save(path: Path) -> None:
        save_graph(source, GraphFile(path, path.with_name(f"{path.name}.data"), saved=True), spec)

    size = add_saved_graph(bundle.path, engines, record, save)
    return Built(record, size, time.perf_counter() - began)


def _has_convolutions(path: Path) -> bool:
    """Whether a graph has convolutions: reordering their weights is what takes the time to load one."""
    import onnx_ir as ir

    return any(node.op_type == "Conv" for node in ir.load(path).graph)
