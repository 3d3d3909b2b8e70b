"""Compare the graphs of a control bundle with PyTorch at two sizes, and keep the first as its golden."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from latentrt.export.parity import GraphCheck
from latentrt.runtime.bundle import Graph
from latentrt.runtime.bundle.control_manifest import ControlGolden
from latentrt.runtime.control.replay import GOLDEN_FILE, replayed

from .models import Model

# Relative errors that a runtime may have when it replays the golden.
LIMITS = {"fp32": 1e-3, "fp16": 3e-2, "bf16": 1e-1}


def check_and_make_golden(
    folder: Path, kind: str, graphs: Mapping[str, Graph], model: Model, precision: str
) -> ControlGolden:
    """Check every graph of a folder, and write the golden file there; raises `ParityError` for one that differs."""
    check = GraphCheck(folder, precision)
    references = model.references(np.random.default_rng(5))
    for inputs, expected in references:
        got = replayed(kind, graphs, check.run, inputs)
        for name, array in expected.items():
            graph = next(graph for graph, spec in graphs.items() if any(one.name == name for one in spec.outputs))
            # A net that pools its residuals gives one value for all pixels.
            check.compare(graph, name, got[name].astype(np.float32), np.broadcast_to(array, got[name].shape))
    inputs, expected = references[0]
    arrays = {f"in.{name}": array for name, array in inputs.items()}
    arrays |= {f"out.{name}": array for name, array in expected.items()}
    (folder / GOLDEN_FILE).parent.mkdir()
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, folder / GOLDEN_FILE)
    return ControlGolden(GOLDEN_FILE, LIMITS[precision])
