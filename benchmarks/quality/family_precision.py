"""What fp16 and bf16 cost each family, beside what they cost diffusers: errors of latents against diffusers in float32.

    python benchmarks/family_precision.py [sd1 sd2 sdxl sd1-inpaint lcm …] [--precision fp16 bf16] [--seeds 4]

Small random checkpoints, exported to that precision and drawn on the CPU with every result rounded to it (see
`rounded_bundle.py`), and by diffusers in that precision on the CPU. Passes where latentrt's error is at most 1.5 times
that of diffusers. The last line of the output is JSON.
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


from support.checkpoints import tiny_checkpoint

from latentrt.export.write import ExportOptions, export_bundle
from latentrt.runtime import Pipeline
from latentrt.runtime.goldens import relative_error

from .rounded_bundle import rounded_bundle

LIMIT = 1.5
FAMILIES = ("sd1", "sd2", "sdxl", "sd1-inpaint", "lcm")
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
CALL = {"prompt": "a lighthouse in a storm", "num_inference_steps": 6, "guidance_scale": 4.0}


def pictures(family: str) -> dict[str, Any]:
    """Size, and for models that inpaint a picture and a mask."""
    options: dict[str, Any] = {"height": 48, "width": 64}
    if "inpaint" in family:
        random = np.random.default_rng(1)
        image = Image.fromarray(random.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((64, 48))
        half = np.zeros((48, 64), np.uint8)
        half[:, 20:] = 255
        options |= {"image": image, "mask_image": Image.fromarray(half), "strength": 0.8}
    return options


def drawn_by_diffusers(checkpoint: Path, dtype: torch.dtype, seed: int, **options: Any) -> np.ndarray:
    pipe = diffusers.DiffusionPipeline.from_pretrained(checkpoint, torch_dtype=dtype)
    pipe.set_progress_bar_config(disable=True)
    if hasattr(pipe, "upcast_vae"):
        pipe.upcast_vae()  # masked pictures are encoded as an SDXL bundle does it
    generator = [torch.Generator().manual_seed(seed)]
    latents = pipe(generator=generator, output_type="latent", **options).images
    return np.asarray(latents.float().numpy())


def measure(family: str, precision: str, folder: Path, seeds: int) -> dict[str, float]:
    """Mean relative errors of both."""
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", default=list(FAMILIES))
    parser.add_argument("--precision", nargs="+", choices=tuple(DTYPES), default=list(DTYPES))
    parser.add_argument("--seeds", type=int, default=4)
    arguments = parser.parse_args()
    results = {}
    for family, precision in itertools.product(arguments.families, arguments.precision):
        with tempfile.TemporaryDirectory() as folder:
            result = measure(family, precision, Path(folder), arguments.seeds)
        name = f"{family} {precision}"
        results[name] = result
        ratio = result["latentrt"] / result["diffusers"]
        verdict = "ok" if ratio <= LIMIT else f"FAIL, more than {LIMIT}"
        print(
            f"{name:18} latentrt {result['latentrt']:.2e}  diffusers {result['diffusers']:.2e}  {ratio:.2f} {verdict}",
            flush=True,
        )
    print(json.dumps(results))
    return int(any(r["latentrt"] > LIMIT * r["diffusers"] for r in results.values()))


if __name__ == "__main__":
    sys.exit(main())
