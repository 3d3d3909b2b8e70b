"""Our noise of `torch.Generator("cuda")` against PyTorch on the GPU that is here.

    python benchmarks/cuda_noise.py

Needs PyTorch with CUDA. Tensors from one value to more than four for each thread of the GPU, successive draws, float32
and float16, seeds of 64 bits and below zero. Exit status 1 where anything differs by more than 1e-5. The last line is
JSON.
"""

from __future__ import annotations

import json
import sys

import numpy as np
import torch

from latentrt.runtime import TorchGenerator

SEEDS = (0, 1, 42, 2**31, 2**40 + 7, 2**63 - 1, -5)
SIZES = (1, 7, 255, 256, 257, 4 * 64 * 64, 4 * 128 * 128, 16, 10**6, 3 * 10**6 + 1, 64)
LIMITS = {torch.float32: 1e-5, torch.float16: 4e-3}  # half a unit in the last place of a float16 around 4


def main() -> int:
    properties = torch.cuda.get_device_properties(0)
    threads = properties.max_threads_per_multi_processor
    worst: dict[str, float] = {}
    failed = False
    for dtype, limit in LIMITS.items():
        largest = 0.0
        for seed in SEEDS:
            theirs = torch.Generator("cuda").manual_seed(seed)
            ours = TorchGenerator(
                seed,
                "cuda",
                multiprocessors=properties.multi_processor_count,
                threads_per_multiprocessor=threads,
            )
            for size in SIZES:
                expected = torch.randn(size, generator=theirs, device="cuda", dtype=dtype).float().cpu().numpy()
                got = ours.randn(size, np.float16 if dtype == torch.float16 else np.float32).astype(np.float32)
                difference = float(np.abs(got - expected).max())
                if difference > limit:
                    failed = True
                    print(f"{dtype} seed {seed}, {size} values: differs by {difference:.1e}")
                largest = max(largest, difference)
        worst[str(dtype).removeprefix("torch.")] = largest
        print(f"{dtype}: largest difference {largest:.1e} (limit {limit:g})")
    card = {"gpu": properties.name, "multiprocessors": properties.multi_processor_count, "threads": threads}
    print(json.dumps({**card, "torch": torch.__version__, "largest_difference": worst, "passed": not failed}))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
