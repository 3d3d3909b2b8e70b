"""Compares a backend with the golden outputs of a control bundle, which PyTorch computed."""

from collections.abc import Iterator

import numpy as np

from latentrt.runtime.bundle import ControlBundle
from latentrt.runtime.control.replay import replayed
from latentrt.runtime.errors import BundleError
from latentrt.runtime.protocols import Backend
from latentrt.runtime.weights import to_float32

from .checks import GoldenCheck, stored_arrays, within


def verify_control(bundle: ControlBundle, backend: Backend) -> Iterator[GoldenCheck]:
    """Compare what the backend computes with the goldens, output by output. Raises `BundleError` if damaged."""
    file, limit = bundle.file(bundle.manifest.golden.file), bundle.manifest.golden.tolerance
    arrays = stored_arrays(file, "bundle")
    inputs = {name.removeprefix("in."): array for name, array in arrays.items() if name.startswith("in.")}
    graphs = bundle.manifest.graphs
    missing = {spec.name for spec in next(iter(graphs.values())).inputs} - inputs.keys()
    outputs = {spec.name: spec for graph in graphs.values() for spec in graph.outputs}
    expected = {name.removeprefix("out."): array for name, array in arrays.items() if name.startswith("out.")}
    if missing or not expected or not expected.keys() <= outputs.keys():
        raise BundleError(f"{file} is damaged: export the bundle again")
    got = replayed(bundle.manifest.kind, graphs, lambda graph, given: backend.engine(graph).run(given), inputs)
    for name, array in expected.items():
        computed = to_float32(got[name], outputs[name].dtype)
        # A net that pools its residuals gives one value for all pixels, and the file holds only that.
        yield within(name, computed, np.broadcast_to(array, computed.shape), limit)
