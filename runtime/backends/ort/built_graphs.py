"""Graphs that `latentrt build --backend onnxruntime` made for a device: rewritten with the library's own operators, or
saved as the library optimized them."""

import logging
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

from latentrt.runtime.backends.engine_fit import build_command, outdated
from latentrt.runtime.bundle import AnyBundle, EngineList, EngineRecord
from latentrt.runtime.errors import BackendError

from .saved_graphs import unfit_here
from .session import GraphFile

logger = logging.getLogger(__name__)

T = TypeVar("T")


class BuiltGraphs:
    """Chooses the file of each graph: saved, else rewritten, else exported.

    Built files that are outdated, damaged or for another machine are skipped, with one warning for each reason.
    """

    def __init__(self, bundle: AnyBundle, engines: EngineList, device: str) -> None:
        """`device` is "cpu" or "cuda"."""
        self._bundle, self._engines = bundle, engines
        self._built: dict[str, list[GraphFile]] = {}
        refused: dict[str, list[str]] = {}
        for record in sorted(engines.engines, key=lambda record: not record.saved):
            if record.backend != "onnxruntime" or record.device != device:
                continue
            if (reason := self._refusal(record)) is None:
                self._built.setdefault(record.graph, []).append(self._file(record))
            else:
                refused.setdefault(reason, []).append(str(engines.path(record)))
        for reason, files in refused.items():
            command = build_command(bundle, "onnxruntime")
            logger.warning("not used: %s: %s. Build again: %s", ", ".join(files), reason, command)

    def loaded(self, graph: str, load: Callable[[GraphFile], T], *, changed: bool = False) -> T:
        """`load(file)` of the best file of a graph that can be loaded.

        Args:
            changed: whether weights are changed. They are named in rewritten and exported graphs alone.
        """
        spec = self._bundle.graph(graph)
        exported = GraphFile(self._bundle.file(spec.file), self._weights(spec.file))
        built = [file for file in self._built.get(graph, ()) if not (changed and file.saved)]
        for file, following in pairwise([*built, exported]):
            try:
                return load(file)
            except BackendError as error:
                instead = "exported" if following is exported else "rewritten"
                logger.warning("the built graph of %s cannot be loaded, using the %s one: %s", graph, instead, error)
                self._built[graph].remove(file)
        return load(exported)

    def _refusal(self, record: EngineRecord) -> str | None:
        reason = outdated(record, self._bundle.manifest)
        if reason is None and record.saved:
            reason = unfit_here(record)
        if reason is None and not self._engines.intact(record):
            reason = "its hash does not match"
        return reason

    def _file(self, record: EngineRecord) -> GraphFile:
        path = self._engines.path(record)
        if record.saved:
            return GraphFile(path, path.with_name(f"{path.name}.data"), saved=True)
        return GraphFile(path, self._weights(self._bundle.graph(record.graph).file))

    def _weights(self, file: str) -> Path:
        return self._bundle.path / f"{file}.data"
