"""An engine of fixed delay: UNet calls sleep, as a GPU leaves the CPU free, so that the server's own cost is left."""

import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentrt.runtime import Bundle, Pipeline
from latentrt.runtime.arrays import DTYPES, Layers, NewWeights
from latentrt.runtime.bundle import Graph, shape_at, sizes_of_inputs
from latentrt.runtime.loop.host import HostSlots
from latentrt.runtime.loop.host_engine import Arrays, BoundCall
from latentrt.runtime.loop.tables import TimeFeatures
from latentrt.runtime.pipeline import embedded_bundle
from latentrt.runtime.protocols import Bucket
from latentrt.serve.messages import ModelSpec


class DelayedBackend:
    """A backend whose UNet calls take a fixed time and whose other graphs return zeros at once.

    Latents are moved a little by each call, so that pictures differ. The delay sleeps, as a GPU leaves the CPU free.
    """

    name = "delayed"

    def __init__(self, bundle: Bundle, delay: float) -> None:
        self._bundle, self.delay, self.weights = bundle, delay, 0
        self.nets: dict[str, DelayedBackend] = {}
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
