"""Run and compare graphs that are rewritten to ONNX Runtime's own operators for CUDA."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray

from latentrt.export.build.ort_graphs import REWRITES, _functions

from .simulator import contrib_ops

Array = NDArray[Any]
OWN = "com.microsoft"
ON_CUDA = [name for name, rewrite in REWRITES.items() if rewrite.device == "cuda"]
SMALL = {2**k for k in range(4, 12)}  # widths of small models, for which there are no kernels


def run(model: bytes, feeds: dict[str, Array], folder: Path | None = None) -> list[Array]:
    """Outputs by ONNX Runtime on the CPU, where operators without a CPU kernel are expanded.

    `folder` has the external data.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if folder is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    expanded = contrib_ops.with_contrib_ops_expanded(model)
    outputs: list[Array] = onnxruntime.InferenceSession(expanded, options, ["CPUExecutionProvider"]).run(None, feeds)
    return outputs


def worst(got: Sequence[Array], expected: Sequence[Array]) -> float:
    """The largest difference, relative to the largest value of its output."""
    assert [(a.shape, a.dtype) for a in got] == [(b.shape, b.dtype) for b in expected]
    pairs = [(a.astype(np.float64), b.astype(np.float64)) for a, b in zip(got, expected, strict=True)]
    return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs)


def operators(model: ir.Model) -> Counter[str]:
    """How many nodes of each operator there are; ONNX Runtime's begin with their domain."""
    return Counter(f"{node.domain}.{node.op_type}".strip(".") for node in model.graph)


def rewritten(model: ir.Model, names: Sequence[str]) -> int:
    """Apply rewrites in place; return the number of replacements."""
    return sum([rewrite(model) for rewrite in _functions(names)])
