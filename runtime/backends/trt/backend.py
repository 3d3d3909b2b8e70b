"""The TensorRT backend: runs compiled engines on an NVIDIA GPU, with the whole loop on the device."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from latentrt.runtime.arrays import Layers, NewWeights
from latentrt.runtime.backends.engine_cache import EngineCache
from latentrt.runtime.backends.engine_fit import (
    Choice,
    Host,
    best_fit,
    build_command,
    nothing_fits,
    refusal,
)
from latentrt.runtime.bundle import AnyBundle, EngineList, EngineRecord, Sizes
from latentrt.runtime.errors import BackendError
from latentrt.runtime.gpu.device import Stream, device_at
from latentrt.runtime.gpu.engine import Fitted
from latentrt.runtime.gpu.one_shot import GpuEngine, OneShot, run_in_pieces
from latentrt.runtime.gpu.threads import OnCaller
from latentrt.runtime.loop.gpu import GpuSlots, powers_of_two_to
from latentrt.runtime.loop.gpu_nets import GpuNet, gpu_net
from latentrt.runtime.loop.gpu_pool import WEIGHTS_IN_USE, LentSlots, SlotPool
from latentrt.runtime.loop.tables import TimeFeatures, time_graph
from latentrt.runtime.protocols import Bucket
from latentrt.runtime.weights import stored_weight

from .library import TrtLibrary
from .loaded_engine import LoadedEngine


class TrtBackend:
    """The engines of one bundle on one GPU, loaded on first use and kept.

    The slots of each concurrent call have a stream of their own; graphs that run once share one more.
    """

    def __init__(
        self,
        bundle: AnyBundle,
        engines: EngineList,
        *,
        backend: str,
        device_index: int = 0,
        trust_engines: bool = False,
        nets: "Mapping[str, TrtBackend] | None" = None,
    ) -> None:
        """Raises `BackendError` if the library, the GPU or usable engines are missing.

        Args:
            nets: backends of control bundles, by name; they are closed with this one.
        """
        self.nets = dict(nets or {})
        self._library = TrtLibrary(backend)
        self._device = device_at(device_index, backend)
        self._bundle, self._files = bundle, engines
        self._records = self._usable(Host(backend, self._library.version, self._device, trust_engines))
        self._on = OnCaller(device_index)
        self._engines = EngineCache(self._make, graph_of=lambda record: record.graph)
        of_time = time_graph(bundle.manifest.graphs)
        self._features = TimeFeatures(lambda graph, inputs: self._on(self._run, graph, inputs), of_time)
        self._slots = SlotPool(self._new_slots, self._on, self._release, f"{bundle.path} on {self.name}")
        self._stream = self._on(Stream)
        self._one_shot = OneShot(self._stream)

    def _usable(self, host: Host) -> list[EngineRecord]:
        own = [record for record in self._files.engines if record.backend == host.backend]
        refusals = {record.file: refusal(record, self._bundle.manifest, host) for record in own}
        usable = [record for record in own if refusals[record.file] is None]
        needed = self._bundle.manifest.needed_graphs
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

    def run(self, graph: str, inputs: Mapping[str, NDArray[Any]], layers: Layers = None) -> dict[str, NDArray[Any]]:
        """See `GpuBackend.run`."""
        self._slots.require_open()
        return self._slots.retried(self._run, graph, inputs, layers)

    def _run(self, graph: str, inputs: Mapping[str, NDArray[Any]], layers: Layers = None) -> dict[str, NDArray[Any]]:
        return run_in_pieces(self, self._one_shot, graph, self._bundle.graph(graph), inputs, layers)

    def slots(self, bucket: Bucket, count: int) -> LentSlots:
        """See `Backend.slots`; raises `BackendError` with the build command if no engine fits."""
        return self._slots.lend(bucket, count)

    def _new_slots(self, bucket: Bucket, count: int) -> GpuSlots:
        nets = {name: found for name, net in self.nets.items() if (found := net.as_net())}
        return GpuSlots(self, self._bundle.graph("denoise"), bucket, count, features=self._features, nets=nets)

    def as_net(self) -> GpuNet | None:
        """See `gpu_net`."""
        return gpu_net(self, self._bundle.manifest.graphs, self._features)

    def batches(self, sizes: Sizes) -> Sequence[int]:
        """See `GpuBackend.batches`."""
        counts = powers_of_two_to(sizes["B"])
        return sorted({self._choice("denoise", {**sizes, "B": count}).sizes["B"] for count in counts})

    def fitted(self, graph: str, sizes: Sizes, *, split: bool = False) -> Fitted:
        """See `GpuBackend.fitted`."""
        choice = self._choice(graph, sizes, split=split)
        return Fitted(self._engines.get(choice.record), choice.sizes)

    def _choice(self, graph: str, sizes: Sizes, *, split: bool = False) -> Choice:
        records = [record for record in self._records if record.graph == graph]
        choice = best_fit(records, sizes, split=split)
        if choice is None:
            raise BackendError(nothing_fits(self._bundle, self._library.backend, graph, sizes, records))
        return choice

    def _make(self, record: EngineRecord, weights: NewWeights) -> LoadedEngine:
        """Load the engine of a record. The hash is checked first: the library trusts its input."""
        if not self._files.intact(record):
            raise BackendError(
                f"{self._files.folder / record.file} is damaged: its hash does not match. "
                f"Build it again: {build_command(self._bundle, record.backend)}"
            )
        serialized = self._files.path(record).read_bytes()
        spec = self._bundle.graph(record.graph)
        loaded = LoadedEngine(self._library, record, spec, serialized, self._device.name)
        if record.options.get("strip_weights") == "true":
            loaded.refit_from(self._bundle.file(spec.file))
        if weights.get(record.graph):
            loaded.refit(weights[record.graph])
        return loaded

    def set_weights(self, weights: NewWeights) -> None:
        """See `Backend.set_weights`. Refits all loaded engines of these graphs, and others when they are loaded."""
        changed = {*weights, *self._engines.weights}
        for record in self._records:
            if record.graph in changed and record.options.get("refittable") != "true":
                command = build_command(self._bundle, record.backend)
                raise BackendError(
                    f"these engines cannot change their weights. Build refittable ones: {command} --refittable"
                )
        with self._slots.at_rest(WEIGHTS_IN_USE):
            self._on(self._refit, weights, changed)

    def _refit(self, weights: NewWeights, changed: Collection[str]) -> None:
        with self._one_shot.at_rest():
            try:
                for engine in self._engines.loaded(changed):
                    engine.refit(self._back_to_base(engine.record.graph, weights))
            except BackendError:
                # Some are possibly refitted, or in part; loading them again restores the old weights.
                self._slots.free_idle()
                self._one_shot.clear()
                self._engines.drop(changed)
                raise
            self._engines.weights = weights
            self._features.clear()

    def _back_to_base(self, graph: str, weights: NewWeights) -> dict[str, NDArray[Any]]:
        """The new weights of a graph, plus the bundle's own for weights that are no longer changed."""
        new = dict(weights.get(graph, {}))
        left = {name for name in self._engines.weights.get(graph, {}) if name not in new}
        uses = (use for all_uses in self._bundle.manifest.weights.values() for use in all_uses)
        base = {
            u.initializer: stored_weight(self._bundle, u) for u in uses if u.graph == graph and u.initializer in left
        }
        return new | base

    def close(self) -> None:
        """Free all memory; that of running calls when they end."""
        self._slots.close()
        for net in self.nets.values():
            net.close()

    def _release(self) -> None:
        def release() -> None:
            self._one_shot.clear()
            self._stream.close()
            self._engines.close()

        self._on(release)
