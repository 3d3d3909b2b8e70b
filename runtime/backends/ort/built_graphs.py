"""Graphs that `latentrt build --backend onnxruntime` rewrote with ONNX Runtime's own operators for a device."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from latentrt.runtime.backends.engine_fit import build_command, outdated
from latentrt.runtime.bundle import Bundle, EngineList
from latentrt.runtime.errors import BackendError

logger = logging.getLogger(__name__)

T = TypeVar("T")


class BuiltGraphs:
    """Chooses the file of each graph. Outdated or damaged built files are skipped with a warning."""

    def __init__(self, bundle: Bundle, engines: EngineList, device: str) -> None:
        """`device` is "cpu" or "cuda"."""
        self._built: dict[str, Path] = {}
        for record in engines.engines:
            if record.backend != "onnxruntime" or record.device != device:
                continue
            reason = outdated(record, bundle.manifest)
            if reason is None and not engines.intact(record):
                reason = "its hash does not match"
            if reason is None:
                self._built[record.graph] = engines.path(record)
            else:
                command = build_command(bundle, record.backend)
                logger.warning("%s is not used: %s. Build it again: %s", engines.path(record), reason, command)

    def loaded(self, graph: str, load: Callable[[Path | None], T]) -> T:
        """`load(path)` of a graph's built file; `load(None)`, for the exported file, if there is none or it fails."""
        if graph in self._built:
            try:
                return load(self._built[graph])
            except BackendError as error:
                logger.warning("the built graph of %s cannot be loaded, using the exported one: %s", graph, error)
                del self._built[graph]
        return load(None)
