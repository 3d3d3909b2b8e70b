"""The TensorRT backend: runs compiled engines on an NVIDIA GPU, with the whole loop on the device."""

import threading
from typing import Any

from numpy.typing import NDArray

from latentrt.runtime.arrays import NewWeights
from latentrt.runtime.backends.engine_fit import Host, best_fit, build_command, needed_graphs, nothing_fits, refusal
from latentrt.runtime.bundle import Bundle, EngineList, EngineRecord, Sizes
from latentrt.runtime.errors import BackendError
from latentrt.runtime.gpu.device import device_at
from latentrt.runtime.gpu.engine import Fitted, GpuEngine
from latentrt.runtime.gpu.lane import Lane
from latentrt.runtime.gpu.lane_pool import LanePool
from latentrt.runtime.loop.gpu import GpuDenoiser
from latentrt.runtime.protocols import Bucket
from latentrt.runtime.weights import stored_weight

from .library import TrtLibrary
from .loaded_engine import LoadedEngine


class TrtBackend:
    """The engines of one bundle on one GPU, loaded on first use and kept.

    Each concurrent call runs its loop on its own lane; graphs that run once share one more lane.
    """

    def __init__(
        self,
        bundle: Bundle,
        engines: EngineList,
        *,
        backend: str,
        device_index: int = 0,
        trust_engines: bool = False,
    ) -> None:
        """Raises `BackendError` if the library, the GPU or usable engines are missing."""
        self._library = TrtLibrary(backend)
        self._device = device_at(device_index, backend)
        self._bundle, self._files = bundle, engines
        self._records = self._usable(Host(backend, self._library.version, self._device, trust_engines))
        self._weights: NewWeights = {}
        self._loaded: dict[str, LoadedEngine] = {}
        self._loading = threading.Lock()
        self.lanes = LanePool(lambda: Lane(device_index), self._release, f"{bundle.path} on {self.name}")

    def _usable(self, host: Host) -> list[EngineRecord]:
        own = [record for record in self._files.engines if record.backend == host.backend]
        refusals = {record.file: refusal(record, self._bundle.manifest, host) for record in own}
        usable = [record for record in own if refusals[record.file] is None]
        needed = needed_graphs(self._bundle.manifest)
        missing = [graph for graph in needed if graph not in {record.graph for record in usable}]
        if missing:
            command = build_command(self._bundle, host.backend)
            reasons = dict.fromkeys(f"{r.graph}: {refusals[r.file]}" for r in own if r.graph in missing)
            raise BackendError(
                f"{self._files.folder} has no usable {host.backend} engine of {', '.join(missing)}"
                + (f" ({'; '.join(reasons)})" if reasons else "")
                + f". Build: {command}"
            )
        return usable

    @property
    def name(self) -> str:
        """Library and device, such as "tensorrt on NVIDIA H100"."""
        return f"{self._library.backend} on {self._device.name}"

    def engine(self, graph: str) -> GpuEngine:
        """The engine of a graph for host arrays; the sizes of each call select its file."""
        return GpuEngine(self, self._bundle.graph(graph), graph)

    def denoiser(self, bucket: Bucket) -> GpuDenoiser:
        """A denoiser for these sizes; raises `BackendError` with the build command if no engine fits."""
        return GpuDenoiser(self, bucket)

    def fitted(self, graph: str, sizes: Sizes, *, split: bool = False) -> Fitted:
        """The best engine for these sizes, loaded."""
        records = [record for record in self._records if record.graph == graph]
        choice = best_fit(records, sizes, split=split)
        if choice is None:
            raise BackendError(nothing_fits(self._bundle, self._library.backend, graph, sizes, records))
        return Fitted(self._load(choice.record), choice.sizes)

    def _load(self, record: EngineRecord) -> LoadedEngine:
        """The engine of a record, loaded on first use. The hash is checked first: the library trusts its input."""
        with self._loading:
            self.lanes.require_open()
            if record.file not in self._loaded:
                if not self._files.intact(record):
                    raise BackendError(
                        f"{self._files.folder / record.file} is damaged: its hash does not match. "
                        f"Build it again: {build_command(self._bundle, record.backend)}"
                    )
                plan = self._files.path(record).read_bytes()
                spec = self._bundle.graph(record.graph)
                loaded = LoadedEngine(self._library, record, spec, plan, self._device.name)
                if record.options.get("strip_weights") == "true":
                    loaded.refit_from(self._bundle.file(spec.file))
                if self._weights.get(record.graph):
                    loaded.refit(self._weights[record.graph])
                self._loaded[record.file] = loaded
            return self._loaded[record.file]

    def set_weights(self, weights: NewWeights) -> None:
        """See `Backend.set_weights`. Refits all loaded engines of these graphs, and others when they are loaded."""
        changed = {*weights, *self._weights}
        for record in self._records:
            if record.graph in changed and record.options.get("refittable") != "true":
                command = build_command(self._bundle, record.backend)
                raise BackendError(
                    f"these engines cannot change their weights. Build refittable ones: {command} --refittable"
                )
        with self.lanes.at_rest(), self._loading:
            loaded = [engine for engine in self._loaded.values() if engine.record.graph in changed]
            try:
                for engine in loaded:
                    engine.refit(self._back_to_base(engine.record.graph, weights))
            except BackendError:
                for engine in loaded:  # possibly refitted in part; reloading restores the old weights
                    self._unload(engine)
                raise
            self._weights = weights

    def _back_to_base(self, graph: str, weights: NewWeights) -> dict[str, NDArray[Any]]:
        """The new weights of a graph, plus the bundle's own for weights that are no longer changed."""
        new = dict(weights.get(graph, {}))
        left = {name for name in self._weights.get(graph, {}) if name not in new}
        uses = (use for all_uses in self._bundle.manifest.weights.values() for use in all_uses)
        base = {
            u.initializer: stored_weight(self._bundle, u) for u in uses if u.graph == graph and u.initializer in left
        }
        return new | base

    def _unload(self, engine: LoadedEngine) -> None:
        self.lanes.forget(engine)
        del self._loaded[engine.record.file]
        engine.close()

    def close(self) -> None:
        """Free all memory; that of running calls when they end."""
        self.lanes.close()

    def _release(self) -> None:
        with self._loading:
            while self._loaded:
                self._loaded.popitem()[1].close()
