"""Compares a backend with the golden outputs of a control bundle, which PyTorch computed."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from latentrt.runtime.arrays import DTYPES
from latentrt.runtime.bundle import ControlBundle, sizes_of_inputs
from latentrt.runtime.control.replay import Arrays, replayed
from latentrt.runtime.errors import BundleError, InputError
from latentrt.runtime.protocols import Backend
from latentrt.runtime.weights import to_float32

from .checks import GoldenCheck, damaged, stored_arrays, within


def verify_control(bundle: ControlBundle, backend: Backend) -> Iterator[GoldenCheck]:
    """Compare what the backend computes with the goldens, output by output. Raises `BundleError` if damaged."""
    file, limit = bundle.file(bundle.manifest.golden.file), bundle.manifest.golden.tolerance
    inputs, expected = _golden_arrays(bundle, file)
    graphs = bundle.manifest.graphs
    outputs = {spec.name: spec for graph in graphs.values() for spec in graph.outputs}
    got = replayed(bundle.manifest.kind, graphs, lambda graph, given: backend.engine(graph).run(given), inputs)
    for name, array in expected.items():
        computed = to_float32(got[name], outputs[name].dtype)
        try:
            # A net that pools its residuals gives one value for all pixels, and the file holds only that.
            wanted = np.broadcast_to(array, computed.shape)
        except ValueError as error:
            raise damaged(file, "bundle", error) from error
        yield within(name, computed, wanted, limit)


def _golden_arrays(bundle: ControlBundle, file: Path) -> tuple[Arrays, Arrays]:
    """Inputs and expected outputs by name. Raises `BundleError` if the graphs do not take and give such arrays."""
    arrays = stored_arrays(file, "bundle")
    inputs = {name.removeprefix("in."): array for name, array in arrays.items() if name.startswith("in.")}
    expected = {name.removeprefix("out."): array for name, array in arrays.items() if name.startswith("out.")}
    graphs = bundle.manifest.graphs.values()
    given = {spec.name for graph in graphs for spec in graph.outputs}
    specs = {spec.name: spec for graph in graphs for spec in graph.inputs if spec.name not in given}
    needed = {name: spec for name, spec in specs.items() if name in inputs or not name.startswith("previous_")}
    try:
        # As if they were the inputs of one graph, so that sizes fit across graphs.
        whole = replace(next(iter(graphs)), file=file.name, inputs=tuple(needed.values()))
        sizes_of_inputs(whole, {name: array.shape for name, array in inputs.items()})
    except InputError as error:
        raise damaged(file, "bundle", error) from error
    wrong = [name for name, spec in needed.items() if inputs[name].dtype != DTYPES[spec.dtype].numpy]
    wrong += [name for name in expected if name not in given]
    wrong += [name for name, array in expected.items() if array.dtype.kind != "f" or not np.isfinite(array).all()]
    if wrong or not expected:
        raise BundleError(f"{file} is damaged: {', '.join(wrong) or 'it has no outputs'}. Export the bundle again")
    return inputs, expected
