"""Compares a backend with the golden outputs of a control bundle, which PyTorch computed."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentrt.runtime.arrays import Float32
from latentrt.runtime.bundle import ControlBundle, TensorSpec
from latentrt.runtime.errors import BundleError
from latentrt.runtime.files import open_regular
from latentrt.runtime.protocols import Backend
from latentrt.runtime.weights import to_float32

from .replay import replayed


def golden_errors(bundle: ControlBundle, backend: Backend) -> Iterator[tuple[str, float]]:
    """Name of each output, and the relative error of what the backend computes. Raises `BundleError` if damaged."""
    arrays = _golden_arrays(bundle)
    inputs = {name.removeprefix("in."): array for name, array in arrays.items() if name.startswith("in.")}
    graphs = bundle.manifest.graphs
    missing = {spec.name for spec in next(iter(graphs.values())).inputs} - inputs.keys()
    outputs = {spec.name: spec for graph in graphs.values() for spec in graph.outputs}
    expected = {name.removeprefix("out."): array for name, array in arrays.items() if name.startswith("out.")}
    if missing or not expected or not expected.keys() <= outputs.keys():
        raise BundleError(f"{bundle.file(bundle.manifest.golden.file)} is damaged: export the bundle again")
    got = replayed(bundle.manifest.kind, graphs, lambda graph, given: backend.engine(graph).run(given), inputs)
    for name, array in expected.items():
        yield name, _relative(_as_float32(got[name], outputs[name]), array)


def _golden_arrays(bundle: ControlBundle) -> dict[str, NDArray[Any]]:
    from safetensors import SafetensorError, safe_open

    file = bundle.file(bundle.manifest.golden.file)
    try:
        with open_regular(file), safe_open(file, "np") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, TypeError, KeyError) as error:
        raise BundleError(f"{file} is damaged: {str(error)[:300]}. Export the bundle again") from error


def _as_float32(array: NDArray[Any], spec: TensorSpec) -> Float32:
    return to_float32(array, spec.dtype)


def _relative(got: NDArray[Any], expected: NDArray[Any]) -> float:
    difference = np.linalg.norm(got.astype(np.float64) - expected)
    return float(difference / np.linalg.norm(np.broadcast_to(expected, got.shape).astype(np.float64)))
