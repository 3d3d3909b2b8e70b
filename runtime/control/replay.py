"""Run the graphs of a control bundle once, in their order; the exporter compares them with PyTorch so, and `verify`."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentrt.runtime.arrays import DTYPES, RunGraph
from latentrt.runtime.bundle import Graph, shape_at

GOLDEN_FILE = "golden/golden.safetensors"

Arrays = Mapping[str, NDArray[Any]]


def replayed(kind: str, graphs: Mapping[str, Graph], run: RunGraph, inputs: Arrays) -> Arrays:
    """All outputs of a control bundle that do not go from one of its graphs to another, by name.

    Args:
        inputs: inputs by name, of all graphs that read none of another one; `previous_*` are zeros where they are left
            out.
    """
    if kind.startswith("controlnet"):
        return _net(graphs, run, inputs)
    (name,) = graphs
    return run(name, dict(inputs))


def _net(graphs: Mapping[str, Graph], run: RunGraph, inputs: Arrays) -> Arrays:
    hint = run("hint", {"hint": inputs["hint"]})
    own = {spec.name for spec in graphs["control_time"].inputs}
    time = run("control_time", {name: array for name, array in inputs.items() if name in own})
    context = run("control_context", {"hidden_states": inputs["hidden_states"]})
    state, rows = inputs["state"], len(inputs["weights"])
    sizes = {"B": len(state), "G": rows // len(state), "h": state.shape[3], "w": state.shape[4]}
    given = {spec.name: inputs[spec.name] for spec in graphs["control"].inputs if spec.name in inputs}
    zeros = {
        spec.name: np.zeros(shape_at(spec, sizes), DTYPES[spec.dtype].numpy)
        for spec in graphs["control"].inputs
        if spec.name.startswith("previous_")
    }
    return {**hint, **run("control", {**zeros, **hint, **time, **context, **given})}
