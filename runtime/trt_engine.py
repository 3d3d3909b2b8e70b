"""TensorRT: the backend that runs a bundle's compiled engines on an NVIDIA GPU, with the whole loop on the device."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .bundle import Bundle, EngineRecord, Graph
from .device import visible_devices
from .engine import Bucket, NewWeights
from .engine_choice import Choice, Host, Sizes, build_command, nothing_fits, refusal, sizes_of_inputs, tightest
from .engine_files import EngineFiles
from .errors import BackendError
from .trt_denoiser import TrtDenoiser
from .trt_lane import Lane
from .trt_library import TrtLibrary
from .trt_loaded import LoadedEngine
from .weights import stored_weight

NEEDED = ("context", "time", "denoise", "vae_decoder")


class TrtBackend:
    """The engines of one bundle on one GPU; loaded when a size is first drawn, and kept.

    The loop of each call runs on a lane of its own, of which there are as many as calls run at once; graphs that run
    once share another lane, one after the other.
    """

    def __init__(
        self,
        bundle: Bundle,
        backend: str,
        *,
        device_index: int = 0,
        engines: Path | None = None,
        trust_engines: bool = False,
    ) -> None:
        """Raises `BackendError` with the reason, and what to do, where this cannot run here."""
        self._library = TrtLibrary(backend)
        devices = visible_devices()
        if device_index >= len(devices):
            raise BackendError(
                f"{backend} needs an NVIDIA GPU, and "
                + (f"cuda:{device_index} is not among the {len(devices)} here" if devices else "CUDA shows none here")
            )
        self._device = devices[device_index]
        self._bundle, self._files = bundle, EngineFiles.of_bundle(bundle, engines)
        self._records = self._usable(Host(backend, self._library.version, self._device, trust_engines))
        self._weights: NewWeights = {}
        self._loaded: dict[str, LoadedEngine] = {}
        self._idle: list[Lane] = []
        self._busy = 0
        self._one_shot_lane: Lane | None = None
        self._closed = False
        # Taken in this order, where more than one is needed.
        self._state, self._one_shot, self._loading = threading.Lock(), threading.Lock(), threading.Lock()

    def _usable(self, host: Host) -> list[EngineRecord]:
        own = [record for record in self._files.engines if record.backend == host.backend]
        refusals = {record.file: refusal(record, self._bundle.manifest, host) for record in own}
        usable = [record for record in own if refusals[record.file] is None]
        needed = (*(encoder.graph for encoder in self._bundle.manifest.model.text_encoders), *NEEDED)
        missing = [graph for graph in needed if graph not in {record.graph for record in usable}]
        if missing:
            command = build_command(self._bundle, host.backend)
            reasons = dict.fromkeys(f"{r.graph}: {refusals[r.file]}" for r in own if r.graph in missing)
            raise BackendError(
                f"{self._files.folder} has no {host.backend} engine of {', '.join(missing)} that fits here"
                + (f" ({'; '.join(reasons)})" if reasons else "")
                + f". Build: {command}"
            )
        return usable

    @property
    def name(self) -> str:
        """Such as "tensorrt on NVIDIA H100"."""
        return f"{self._library.backend} on {self._device.name}"

    def engine(self, graph: str) -> "TrtEngine":
        """The engine of a graph for host arrays; which file it is depends on the sizes of each call."""
        return TrtEngine(self, self._bundle.graph(graph), graph)

    def denoiser(self, bucket: Bucket) -> TrtDenoiser:
        """A denoiser for these sizes; raises `BackendError` with the build command where no engine fits."""
        sizes = {"B": bucket.batch, "G": bucket.groups, "h": bucket.height, "w": bucket.width, "S": bucket.tokens}
        return TrtDenoiser(self, self.choose("denoise", sizes), bucket)

    def choose(self, graph: str, sizes: Sizes, *, split: bool = False) -> Choice:
        """The tightest engine for these sizes."""
        records = [record for record in self._records if record.graph == graph]
        choice = tightest(records, sizes, split=split)
        if choice is None:
            raise BackendError(nothing_fits(self._bundle, self._library.backend, graph, sizes, records))
        return choice

    def load(self, record: EngineRecord) -> LoadedEngine:
        """The engine of a record, loaded on first use; a damaged file is refused before the library sees it."""
        with self._loading:
            self._require_open()
            if record.file not in self._loaded:
                if not self._files.intact(record):
                    raise BackendError(
                        f"{self._files.folder / record.file} is not what was built: its hash is another. "
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

    @contextmanager
    def lane(self) -> Iterator[Lane]:
        """A lane for one call's loop."""
        with self._state:
            self._require_open()
            lane = self._idle.pop() if self._idle else None
            self._busy += 1
        try:
            if lane is None:
                lane = Lane(self._device.index)
            lane.begin()
            yield lane
        finally:
            with self._state:
                self._busy -= 1
                if lane is not None:
                    self._idle.append(lane)
                if self._closed:
                    self._give_back()

    @contextmanager
    def one_shot_lane(self) -> Iterator[Lane]:
        """The lane of the graphs that run once, for one thread at a time."""
        with self._one_shot:
            self._require_open()
            if self._one_shot_lane is None:
                self._one_shot_lane = Lane(self._device.index)
            self._one_shot_lane.begin()
            yield self._one_shot_lane

    def set_weights(self, weights: NewWeights) -> None:
        """See `Backend.set_weights`: all engines of these graphs are refitted, those loaded later when they are."""
        changed = {*weights, *self._weights}
        for record in self._records:
            if record.graph in changed and record.options.get("refittable") != "true":
                command = build_command(self._bundle, record.backend)
                raise BackendError(
                    f"the engines' weights are fixed. Build engines that take LoRA: {command} --refittable"
                )
        with self._state, self._one_shot, self._loading:
            if self._busy:
                raise BackendError("weights cannot change while a picture is drawn: finish it, or close its stream")
            loaded = [engine for engine in self._loaded.values() if engine.record.graph in changed]
            try:
                for engine in loaded:
                    engine.refit(self._back_to_base(engine.record.graph, weights))
            except BackendError:
                for engine in loaded:  # which may be half refitted; loaded again, they have the weights of before
                    self._unload(engine)
                raise
            self._weights = weights

    def _back_to_base(self, graph: str, weights: NewWeights) -> dict[str, NDArray[Any]]:
        """The new weights of a graph, and the bundle's own for those that were changed before and now are not."""
        new = dict(weights.get(graph, {}))
        left = {name for name in self._weights.get(graph, {}) if name not in new}
        uses = (use for all_uses in self._bundle.manifest.weights.values() for use in all_uses)
        base = {
            u.initializer: stored_weight(self._bundle, u) for u in uses if u.graph == graph and u.initializer in left
        }
        return new | base

    def _unload(self, engine: LoadedEngine) -> None:
        for lane in (*self._idle, *filter(None, [self._one_shot_lane])):
            lane.forget(engine)
        del self._loaded[engine.record.file]
        engine.close()

    def _require_open(self) -> None:
        if self._closed:
            raise BackendError(f"{self._bundle.path} is closed on {self.name}: load it again")

    def close(self) -> None:
        """Give all memory back; that of calls under way, as soon as they end."""
        with self._state, self._one_shot:
            self._closed = True
            if self._one_shot_lane is not None:
                self._one_shot_lane.close()
                self._one_shot_lane = None
            self._give_back()

    def _give_back(self) -> None:
        while self._idle:
            self._idle.pop().close()
        if not self._busy:
            with self._loading:
                while self._loaded:
                    self._loaded.popitem()[1].close()


class TrtEngine:
    """A graph on host arrays: spread over as many runs of the tightest engine as its rows need."""

    def __init__(self, backend: TrtBackend, spec: Graph, graph: str) -> None:
        self.spec = spec
        self._backend, self._graph = backend, graph

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """All outputs by name."""
        sizes = sizes_of_inputs(self.spec, {name: array.shape for name, array in inputs.items()})
        choice = self._backend.choose(self._graph, sizes, split=True)
        engine = self._backend.load(choice.record)
        rows = next(iter(inputs.values())).shape[0]
        step = choice.sizes[str(self.spec.inputs[0].shape[0])]
        pieces: dict[str, list[NDArray[Any]]] = {spec.name: [] for spec in self.spec.outputs}
        with self._backend.one_shot_lane() as lane:
            context = lane.context(engine, choice.sizes, kept=False)
            context.resize(choice.sizes)
            for at in range(0, rows, step):
                for spec in self.spec.inputs:
                    context.write(spec.name, inputs[spec.name][at : at + step].astype(spec.dtype, copy=False))
                context.enqueue()
                for spec in self.spec.outputs:
                    pieces[spec.name].append(context.read(spec)[: rows - at])
        return {name: np.concatenate(parts) for name, parts in pieces.items()}

    def close(self) -> None:
        """Nothing to give back: the backend keeps the engines."""
