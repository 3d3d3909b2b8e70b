"""What tests of the server share: a dispatcher in this process that collects events, and an engine of fixed delay."""

import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentrt.runtime import Bundle, Pipeline
from latentrt.runtime.arrays import DTYPES, Layers, NewWeights
from latentrt.runtime.bundle import Graph, shape_at, sizes_of_inputs
from latentrt.runtime.loop.host import Arrays, BoundCall, HostSlots
from latentrt.runtime.loop.tables import TimeFeatures
from latentrt.runtime.pipeline import embedded_bundle
from latentrt.runtime.protocols import Bucket
from latentrt.serve.dispatcher.dispatcher import Dispatcher
from latentrt.serve.dispatcher.models import served_model
from latentrt.serve.dispatcher.pictures import FilteredPicture
from latentrt.serve.messages import (
    Called,
    DispatcherOptions,
    Done,
    Event,
    Failed,
    Job,
    ModelSpec,
    Output,
    Picture,
    RefusedError,
)

PATIENCE = 120.0  # seconds that any job of a test may take


class Device:
    """A dispatcher in this process, and what it told."""

    def __init__(self, spec: ModelSpec, options: DispatcherOptions) -> None:
        self.model = served_model(spec)
        self.events: dict[str, list[Event]] = defaultdict(list)
        self.calls: list[Called] = []
        self._ended: dict[str, threading.Event] = defaultdict(threading.Event)
        self._number = 0
        self.dispatcher = Dispatcher([spec], options, self._listen)
        self.dispatcher.start()

    def _listen(self, event: Event | Called) -> None:
        if isinstance(event, Called):
            self.calls.append(event)
            return
        self.events[event.job].append(event)
        if isinstance(event, Done | Failed):
            self._ended[event.job].set()

    def job(self, prompt: str, options: Mapping[str, Any], **facts: Any) -> Job:
        """A job that has not been submitted."""
        self._number += 1
        facts.setdefault("output", Output("latents"))
        return Job(str(self._number), self.model.name, self.model.request(prompt, options), **facts)

    def submit(self, prompt: str, options: Mapping[str, Any], **facts: Any) -> Job:
        """Submit a job; waits while the queue is full."""
        job = self.job(prompt, options, **facts)
        while True:
            try:
                self.dispatcher.submit(job)
                return job
            except RefusedError as error:
                if error.reason != "busy":
                    raise
                time.sleep(0.05)

    def wait(self, jobs: Iterable[Job]) -> None:
        """Wait until jobs have ended."""
        for job in jobs:
            assert self._ended[job.id].wait(PATIENCE), f"job {job.id} has not ended: {self.events[job.id][-3:]}"

    def end(self, job: Job) -> Event:
        """The last event of a job."""
        self.wait([job])
        return self.events[job.id][-1]

    def latents(self, job: Job) -> NDArray[np.float32]:
        """(images, values) of a job that asked for latents."""
        assert isinstance(self.end(job), Done), self.end(job)
        pictures = sorted((e for e in self.events[job.id] if isinstance(e, Picture)), key=lambda e: e.image)
        return np.stack([np.frombuffer(picture.data, "<f4") for picture in pictures])

    def close(self) -> None:
        self.dispatcher.close()


class DelayedBackend:
    """A backend whose UNet calls take a fixed time and whose other graphs return zeros at once.

    Latents are moved a little by each call, so that pictures differ. The delay sleeps, as a GPU leaves the CPU free.
    """

    name = "delayed"

    def __init__(self, bundle: Bundle, delay: float) -> None:
        self._bundle, self.delay, self.weights = bundle, delay, 0
        self._features = TimeFeatures(lambda graph, inputs: self.engine(graph).run(inputs))

    def engine(self, graph: str) -> "DelayedEngine":
        return DelayedEngine(self._bundle.graph(graph), self.delay if graph == "denoise" else 0.0)

    def slots(self, bucket: Bucket, count: int) -> HostSlots:
        return HostSlots(
            bucket,
            count,
            denoise=self.engine("denoise"),
            engine=self.engine,
            features=self._features,
            any_groups=True,
        )

    def set_weights(self, _weights: NewWeights) -> None:
        self.weights += 1

    def close(self) -> None:
        """Nothing to free."""


class DelayedEngine:
    """See `DelayedBackend`."""

    def __init__(self, spec: Graph, delay: float) -> None:
        self.spec, self._delay = spec, delay

    def run(self, inputs: Mapping[str, NDArray[Any]], layers: Layers = None) -> dict[str, NDArray[Any]]:
        sizes = sizes_of_inputs(self.spec, {name: array.shape for name, array in inputs.items()})
        outputs = {o.name: np.zeros(shape_at(o, sizes), DTYPES[o.dtype].numpy) for o in self.spec.outputs}
        if layers is not None:
            outputs["hidden_states"] = outputs["hidden_states"][:, list(layers)]
        return outputs

    def bind(self, inputs: Arrays, outputs: Arrays) -> BoundCall:
        def call() -> None:
            if self._delay:
                time.sleep(self._delay)
            outputs["next_state"][:] = inputs["state"] * np.float32(0.99)

        return call

    def close(self) -> None:
        """Nothing to free."""


def load_delayed(spec: ModelSpec, _device: str | None) -> Pipeline:
    """A loader: the embedded model's bundle with UNet calls of 20 ms, or as the model's name says: "delay-100"."""
    milliseconds = 20.0
    with suppress(ValueError):
        milliseconds = float(spec.name.rpartition("-")[2])
    bundle = Bundle.open(embedded_bundle() if spec.path is None else spec.path)
    return Pipeline(bundle, DelayedBackend(bundle, milliseconds / 1000))


def turned_if_even(picture: FilteredPicture) -> Any:
    """A filter: pictures of even seeds pass, turned; others are refused, and 13 makes it fail."""
    if picture.seed == 13:
        raise ValueError("the filter is broken")
    return None if picture.seed % 2 else picture.image.rotate(180)
