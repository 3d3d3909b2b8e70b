"""What the machine can do at most: products of matrices, and bytes of its memory.

The floor of a graph is what it must compute over the one, or must move over the other, whichever takes longer. On a CPU
the best of two libraries counts. Convolutions by Winograd's method need fewer multiplications than are counted, so an
engine may come out below the floor there.
"""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np

from .harness import cores
from .onnx_cost import Cost

SIDE, MEGABYTES, REPETITIONS = 2048, 512, 9


def rates(device: str = "cpu") -> dict[str, float]:
    """float32 (on a GPU also float16 and tf32): operations a second; bytes: read and written, a second."""
    if device != "cpu":
        from .gpu_ceilings import rates as gpu_rates

        return gpu_rates(device)
    left, right = (np.random.default_rng(seed).standard_normal((SIDE, SIDE), np.float32) for seed in (0, 1))
    session = _matmul_session()
    products = {
        "numpy": partial(np.matmul, left, right),
        "onnxruntime": partial(session.run, None, {"left": left, "right": right}),
    }
    flops = max(2 * SIDE**3 / _least_seconds(work) for work in products.values())
    return {"float32": flops, "bytes": _copied_bytes()}


def floor_seconds(cost: Cost, measured: Mapping[str, float], precision: str, device: str) -> float:
    """The floor of one run of a graph, in a bundle of this precision."""
    # bf16 multiplies as fast as fp16 on a GPU; on a CPU everything is computed in float32.
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
    """All cores copy at once, each a piece of its own."""
    count = cores()
    pieces = [np.ones(MEGABYTES * 2**20 // 8 // count) for _ in range(count)]
    targets = [np.empty_like(piece) for piece in pieces]
    with ThreadPoolExecutor(count) as pool:
        seconds = _least_seconds(lambda: list(pool.map(np.copyto, targets, pieces)))
    return 2 * sum(piece.nbytes for piece in pieces) / seconds


def _least_seconds(work: Callable[[], Any]) -> float:
    seconds = []
    for turn in range(-2, REPETITIONS):
        start = time.perf_counter()
        work()
        if turn >= 0:
            seconds.append(time.perf_counter() - start)
    return min(seconds)
