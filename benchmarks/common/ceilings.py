"""Upper limits of the machine: its rate of matrix products, and its memory bandwidth.

The floor of a graph is the time for its operations at the one rate, or for its bytes at the other, whichever is longer.
On a CPU, the faster of numpy and ONNX Runtime sets the rate of products. Convolutions by Winograd's method need fewer
multiplications than are counted, so an engine can be faster than the floor there.
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np

from latentrt.export.build.onnx_cost import Cost

from .harness import cores, interleaved

SIDE, MEGABYTES, REPETITIONS = 2048, 512, 9


def rates(device: str = "cpu") -> dict[str, float]:
    """Rates per second: operations in "float32" (on a GPU also "float16" and "tf32"), and "bytes" read and written."""
    if device != "cpu":
        from .gpu_ceilings import rates as gpu_rates

        return gpu_rates(device)
    left, right = (np.random.default_rng(seed).standard_normal((SIDE, SIDE), np.float32) for seed in (0, 1))
    session = _matmul_session()
    products = {
        "numpy": partial(np.matmul, left, right),
        "onnxruntime": partial(session.run, None, {"left": left, "right": right}),
    }
    flops = max(2 * SIDE**3 / min(seconds) for seconds in interleaved(products, REPETITIONS, warm_up=2).values())
    return {"float32": flops, "bytes": _copied_bytes()}


def floor_seconds(cost: Cost, measured: Mapping[str, float], precision: str, device: str) -> float:
    """The floor of one run of a graph in a bundle of this precision."""
    # On a GPU, products in bf16 are as fast as in fp16. On a CPU everything is computed in float32.
    kind = "float32" if device == "cpu" else "tf32" if precision == "fp32" else "float16"
    return cost.seconds(measured[kind], measured["bytes"])


def _matmul_session() -> Any:
    import onnx
    import onnxruntime

    tensors = [
        onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [SIDE, SIDE]) for n in ("left", "right", "out")
    ]
    node = onnx.helper.make_node("MatMul", ["left", "right"], ["out"])
    graph = onnx.helper.make_graph([node], "product", tensors[:2], tensors[2:])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def _copied_bytes() -> float:
    """Bandwidth with all cores copying at once, each its own array."""
    count = cores()
    pieces = [np.ones(MEGABYTES * 2**20 // 8 // count) for _ in range(count)]
    targets = [np.empty_like(piece) for piece in pieces]
    with ThreadPoolExecutor(count) as pool:
        cases = {"copy": lambda: list(pool.map(np.copyto, targets, pieces))}
        seconds = min(interleaved(cases, REPETITIONS, warm_up=2)["copy"])
    return 2 * sum(piece.nbytes for piece in pieces) / seconds
