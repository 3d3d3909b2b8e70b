"""What a GPU can do at most: rates of matrix products and copies."""

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any


def rates(device: str, side: int = 8192, megabytes: int = 4096, repetitions: int = 20) -> dict[str, float]:
    """float16, float32 and tf32: operations a second. bytes: read and written, a second."""
    import torch

    found = {}
    before = torch.backends.cuda.matmul.allow_tf32
    for name, dtype in (("float16", torch.float16), ("float32", torch.float32), ("tf32", torch.float32)):
        torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
        # Random and not zeros, which make a GPU faster than data does.
        left, right, out = (torch.randn(side, side, device=device).to(dtype) for _ in range(3))
        seconds = _median_seconds(partial(torch.mm, left, right, out=out), device, repetitions)
        found[name] = 2 * side**3 / seconds
    torch.backends.cuda.matmul.allow_tf32 = before
    source = torch.randn(megabytes * 2**20 // 4, device=device)
    target = torch.empty_like(source)
    seconds = _median_seconds(partial(target.copy_, source), device, repetitions)
    found["bytes"] = 2 * source.numel() * source.element_size() / seconds
    return found


def _median_seconds(work: Callable[[], Any], device: str, repetitions: int) -> float:
    import torch

    wait: Callable[[], Any] = torch.cuda.synchronize if device == "cuda" else lambda: None
    seconds = []
    for turn in range(-3, repetitions):
        wait()
        start = time.perf_counter()
        work()
        wait()
        if turn >= 0:
            seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)
