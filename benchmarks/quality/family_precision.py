"""Errors of fp16 and bf16 for each family, in latentrt and in diffusers, against diffusers in float32.

    python -m benchmarks.quality.family_precision [sd1 sd2 sdxl sd1-inpaint lcm …] [--precision fp16 bf16] [--seeds 4]

Small random checkpoints are exported in that precision and drawn on the CPU with every result rounded to it (see
`rounded_bundle.py`); diffusers draws in that precision on the CPU. Passes if the error of latentrt's latents is at most
1.5 times that of diffusers. The last line is JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from PIL import Image

from latentrt.export.write import ExportOptions, export_bundle
from latentrt.runtime import Pipeline
from latentrt.runtime.goldens import relative_error
from tests.support.checkpoints import tiny_checkpoint

from .rounded_bundle import rounded_bundle

LIMIT = 1.5
FAMILIES = ("sd1", "sd2", "sdxl", "sd1-inpaint", "lcm")
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
CALL = {"prompt": "a lighthouse in a storm", "num_inference_steps": 6, "guidance_scale": 4.0}


def pictures(family: str) -> dict[str, Any]:
    """Options of the size, and for inpainting models a picture and a mask."""
    options: dict[str, Any] = {"height": 48, "width": 64}
    if "inpaint" in family:
        random = np.random.default_rng(1)
        image = Image.fromarray(random.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((64, 48))
        half = np.zeros((48, 64), np.uint8)
        half[:, 20:] = 255
        options |= {"image": image, "mask_image": Image.fromarray(half), "strength": 0.8}
    return options


def drawn_by_diffusers(checkpoint: Path, dtype: torch.dtype, seed: int, **options: Any) -> np.ndarray:
    """Latents of diffusers in this type."""
    pipe = diffusers.DiffusionPipeline.from_pretrained(checkpoint, torch_dtype=dtype)
    pipe.set_progress_bar_config(disable=True)
    if hasattr(pipe, "upcast_vae"):
        pipe.upcast_vae()  # as in an SDXL bundle, masked pictures are encoded in float32
    generator = [torch.Generator().manual_seed(seed)]
    latents = pipe(generator=generator, output_type="latent", **options).images
    return np.asarray(latents.float().numpy())


def measure(family: str, precision: str, folder: Path, seeds: int) -> dict[str, float]:
    """Mean relative error of latentrt and of diffusers."""
    checkpoint = tiny_checkpoint(folder / "checkpoint", family, seed=3, tinier=True)
    bundle = export_bundle(checkpoint, folder / "bundle", ExportOptions(precision=precision, num_inference_steps=6))
    ours, theirs = [], []
    with Pipeline.load(rounded_bundle(bundle, folder / "rounded"), device="cpu") as pipe:
        for seed in range(seeds):
            options = {**CALL, **pictures(family)}
            exact = drawn_by_diffusers(checkpoint, torch.float32, seed, **options)
            half = drawn_by_diffusers(checkpoint, DTYPES[precision], seed, **options)
            theirs.append(relative_error(half, exact))
            ours.append(relative_error(pipe(seed=seed, output_type="latent", **options).latents, exact))
    return {"latentrt": float(np.mean(ours)), "diffusers": float(np.mean(theirs))}


def main() -> int:
    """The command; its status is 1 if an error exceeds its limit."""
    parser = argparse.ArgumentParser(description="Measure the errors of fp16 and bf16 for each family.")
    parser.add_argument("families", nargs="*", default=list(FAMILIES), help=f"default: {' '.join(FAMILIES)}")
    parser.add_argument("--precision", nargs="+", choices=tuple(DTYPES), default=list(DTYPES), help="default: both")
    parser.add_argument("--seeds", type=int, default=4, help="pictures of each family; default: 4")
    arguments = parser.parse_args()
    results = {}
    for family, precision in itertools.product(arguments.families, arguments.precision):
        with tempfile.TemporaryDirectory() as folder:
            result = measure(family, precision, Path(folder), arguments.seeds)
        name = f"{family} {precision}"
        results[name] = result
        ratio = result["latentrt"] / result["diffusers"]
        verdict = "ok" if ratio <= LIMIT else f"FAIL, limit {LIMIT}"
        print(
            f"{name:18} latentrt {result['latentrt']:.2e}  diffusers {result['diffusers']:.2e}  {ratio:.2f} {verdict}",
            flush=True,
        )
    print(json.dumps(results))
    return int(any(r["latentrt"] > LIMIT * r["diffusers"] for r in results.values()))


if __name__ == "__main__":
    sys.exit(main())
