"""Quantized graphs give what is written in them, also on CPUs whose fast kernels of int8 overflow."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from support.exports import SHAPES

from latentrt.export.quantize import QuantizeOptions, quantize_bundle
from latentrt.runtime import Pipeline
from latentrt.runtime.arrays import Float32
from latentrt.runtime.bundle import shape_at
from latentrt.runtime.goldens import relative_error

PROMPTS = tuple(f"a large {colour} star on a black background" for colour in ("red", "blue", "green", "white"))


def as_written(file: Path, inputs: dict[str, Float32]) -> Float32:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    output: Float32 = session.run(None, inputs)[0]
    return output


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_no_sum_overflows(target: str, tmp_path: Path) -> None:
    options = QuantizeOptions(
        to="int8", target=target, prompts=PROMPTS, level=1.0, steps=3, height=64, width=64, gate_mean=9, gate_worst=9
    )
    bundle = quantize_bundle(SHAPES.bundle, tmp_path / target, options).bundle
    spec = bundle.graph("denoise")
    sizes = {"B": 1, "G": 2, "h": 16, "w": 16, "S": 77}
    rng = np.random.default_rng(17)
    inputs = {tensor.name: rng.standard_normal(shape_at(tensor, sizes)).astype(np.float32) for tensor in spec.inputs}
    written = as_written(bundle.file(spec.file), inputs)
    full = as_written(SHAPES.bundle / "denoise.onnx", inputs)
    with Pipeline.load(bundle.path, backend=target) as pipe:
        found = pipe._backend.engine("denoise").run(inputs)["next_state"]
    quantized = relative_error(written, full)
    assert quantized > 1e-3
    # Kernels round at other places. Where sums overflow, their error is 2.6 times that of the quantization.
    assert relative_error(found, written) < 0.6 * quantized
