"""Graphs of a bundle in ONNX Runtime's own form, which `latentrt build --backend onnxruntime` has made for a device."""

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
    """Which file of a graph is loaded; built ones of another export, or damaged, are warned about and left."""

    def __init__(self, bundle: Bundle, engines: EngineList, device: str) -> None:
        """`device` is "cpu" or "cuda"."""
        self._built: dict[str, Path] = {}
        for record in engines.engines:
            if record.backend != "onnxruntime" or record.device != device:
                continue
            reason = outdated(record, bundle.manifest)
            if reason is None and not engines.intact(record):
                reason = "it is not what was built: its hash is another"
            if reason is None:
                self._built[record.graph] = engines.path(record)
            else:
                command = build_command(bundle, record.backend)
                logger.warning("%s is not used: %s. Build it again: %s", engines.path(record), reason, command)

    def loaded(self, graph: str, load: Callable[[Path | None], T]) -> T:
        """What `load` makes of a graph's built file; of None, the exported one, where there is none or it fails."""
        if graph in self._built:
            try:
                return load(self._built[graph])
            except BackendError as error:
                logger.warning("%s runs as it was exported: %s", graph, error)
                del self._built[graph]
        return load(None)
