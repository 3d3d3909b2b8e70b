"""latentrt's noise of `torch.Generator("cuda")` against PyTorch on this machine's GPU.

    python -m benchmarks.quality.cuda_noise [--device cuda]

Needs PyTorch with CUDA. Compares successive draws, in float32 and float16, of tensors from one value to more than four
per thread of the GPU, with seeds up to 64 bits and below zero. The exit status is 1 if anything differs by more than
its limit. `--device cpu` compares the CPU's generator, to try this without a GPU. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from latentrt.runtime import TorchGenerator

SEEDS = (0, 1, 42, 2**31, 2**40 + 7, 2**63 - 1, -5)
SIZES = (1, 7, 255, 256, 257, 4 * 64 * 64, 4 * 128 * 128, 16, 10**6, 3 * 10**6 + 1, 64)
LIMITS = {torch.float32: 1e-5, torch.float16: 4e-3}  # half a unit in the last place of a float16 around 4


@dataclass(frozen=True, slots=True)
class Difference:
    """The largest difference of one draw, and its limit."""

    dtype: str
    seed: int
    size: int
    largest: float
    limit: float


def grid(device: str) -> Mapping[str, int]:
    """The properties of the GPU that its noise depends on; arguments of `TorchGenerator`."""
    if device == "cpu":
        return {}
    facts = torch.cuda.get_device_properties(0)
    return {
        "multiprocessors": facts.multi_processor_count,
        "threads_per_multiprocessor": facts.max_threads_per_multi_processor,
    }


def differences(device: str, *, seeds: Sequence[int] = SEEDS, sizes: Sequence[int] = SIZES) -> Iterator[Difference]:
    """The difference of each draw; every dtype and seed has a generator of its own."""
    facts = grid(device)
    for dtype, limit in LIMITS.items():
        for seed in seeds:
            theirs = torch.Generator(device).manual_seed(seed)
            ours = TorchGenerator(seed, device, **facts)
            for size in sizes:
                expected = torch.randn(size, generator=theirs, device=device, dtype=dtype).float().cpu().numpy()
                got = ours.randn(size, np.float16 if dtype == torch.float16 else np.float32).astype(np.float32)
                largest = float(np.abs(got - expected).max())
                yield Difference(str(dtype).removeprefix("torch."), seed, size, largest, limit)


def main() -> int:
    """The command; its status is 1 if a limit is exceeded."""
    parser = argparse.ArgumentParser(description="Compare noise with that of PyTorch.")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="default: cuda")
    device = parser.parse_args().device
    worst: dict[str, Difference] = {}
    failed = False
    for found in differences(device):
        if not found.largest <= found.limit:
            failed = True
            print(f"{found.dtype} seed {found.seed}, {found.size} values: differs by {found.largest:.1e}")
        if found.dtype not in worst or found.largest > worst[found.dtype].largest:
            worst[found.dtype] = found
    for dtype, found in worst.items():
        print(f"{dtype}: largest difference {found.largest:.1e} (limit {found.limit:g})")
    largest = {dtype: found.largest for dtype, found in worst.items()}
    name = "cpu" if device == "cpu" else torch.cuda.get_device_properties(0).name
    card = {"device": name, **grid(device), "torch": torch.__version__}
    print(json.dumps({**card, "largest_difference": largest, "passed": not failed}))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
