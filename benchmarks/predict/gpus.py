"""GPUs by their published rates.

Sources: NVIDIA's data sheets of the H100 SXM, H200 SXM, A100 SXM 80 GB, L40S and A10, and its white papers of the Ada
(RTX 4090) and Blackwell (RTX 5090) architectures. Rates are dense, without sparsity.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

# Share of measured rates of large products that the layers of an engine reach. PyTorch's reach about 0.8 of the A100's
# published rate and 0.7 of the H100's, so the shares fitted below are about as much of those.
OF_MEASURED = 0.75


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU.

    Attributes:
        name: as people call it.
        multiprocessors: number of streaming multiprocessors.
        half: 10^12 operations a second of products in float16 or bfloat16: those with sums in float32, but for GeForce
            cards those with sums in float16, which are twice as fast there.
        tf32: the same of products in TF32.
        bandwidth: of the memory, 10^9 bytes a second.
        share: of the rates of products that full waves of large tiles reach.
        like: the GPU whose published figures `share` was fitted to, where this one has none; else None.
    """

    name: str
    multiprocessors: int
    half: float
    tf32: float
    bandwidth: float
    share: float
    like: str | None = None


GPUS = {
    "h100": Gpu("H100 SXM", 132, 989.4, 494.7, 3352, 0.47),
    "h200": Gpu("H200 SXM", 132, 989.4, 494.7, 4800, 0.47, like="h100"),
    "a100": Gpu("A100 SXM 80 GB", 108, 312.0, 156.0, 2039, 0.65),
    "a10": Gpu("A10", 72, 125.0, 62.5, 600, 0.52),
    "l40s": Gpu("L40S", 142, 362.1, 183.2, 864, 0.52, like="a10"),
    "4090": Gpu("RTX 4090", 128, 330.3, 82.6, 1008, 0.75),
    "5090": Gpu("RTX 5090", 170, 419.0, 104.8, 1792, 0.75, like="4090"),
}


def measured(gpu: Gpu, summary: Path) -> Gpu:
    """A GPU with the rates that the part `ceilings` of the GPU check has measured on it, from its summary.json."""
    parts = json.loads(summary.read_text(encoding="utf-8"))["parts"]
    figures = next((p["report"]["figures"] for p in parts if p["part"] == "ceilings" and p["report"]), {})
    if not {"float16", "tf32", "bytes"} <= figures.keys():
        raise ValueError(f"{summary} has no rates: expected the summary of a GPU check with the part ceilings")
    half, tf32, bandwidth = figures["float16"] / 1e12, figures["tf32"] / 1e12, figures["bytes"] / 1e9
    return replace(gpu, half=half, tf32=tf32, bandwidth=bandwidth, share=OF_MEASURED)
