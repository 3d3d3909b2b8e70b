"""Upper limits of a GPU, measured with PyTorch: its rates of matrix products, and its memory bandwidth."""

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

from .harness import interleaved


def rates(device: str, side: int = 8192, megabytes: int = 4096, repetitions: int = 20) -> dict[str, float]:
    """Rates per second: operations in "float16", "float32" and "tf32", and "bytes" read and written."""
    import torch

    found = {}
    before = torch.backends.cuda.matmul.allow_tf32
    for name, dtype in (("float16", torch.float16), ("float32", torch.float32), ("tf32", torch.float32)):
        torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
        # Random values: with zeros a GPU draws less power and runs faster than with data.
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

    def finished() -> None:
        work()
        if device == "cuda":
            torch.cuda.synchronize()

    return statistics.median(interleaved({"work": finished}, repetitions, warm_up=3)["work"])
