"""What quantization does to the pictures of the embedded model, judged by pixels beside those of its source.

    python -m benchmarks.quality.quantized [--seeds 3] [--keep int8=55 --keep fp8=55] [--out benchmarks/results]

Quantizes the bundle with the prompts of `calibration.txt`, through the gate, and draws the 300 held-out prompts with
three seeds each: with the source and with each quantized bundle, from the same noise. Passes if at most 2 points of
single objects and 4 of pairs are lost. Writes `quantized.md` and `quantized.json`. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common.paths import PROMPTS, RESULTS, ROOT
from benchmarks.shapes.drawings import scene_from_caption
from latentrt.export.quantize import QuantizeOptions, quantize_bundle
from latentrt.runtime import Pipeline
from latentrt.runtime.goldens import psnr

from .judge import judge
from .shapes_quality import Pictures, draw

BUNDLE = ROOT / "engines" / "shapes"
CALIBRATION = Path(__file__).with_name("calibration.txt")
TARGETS = {"int8": "openvino", "fp8": "tensorrt", "int8-weights": "openvino"}
BACKENDS = {"openvino": "openvino", "tensorrt": "onnxruntime"}  # ONNX Runtime computes fp8 as it is written
KEPT = {"int8": 55, "fp8": 55}  # layers in float, which the gate asks for
ALLOWED = {"single": 2.0, "double": 4.0}  # points lost


def pictures_of(bundle: Path, backend: str, prompts: list[str]) -> Pictures:
    """A picture of each prompt; the seed is its index."""
    with Pipeline.load(bundle, backend=backend) as pipe:
        return draw(pipe, prompts, range(len(prompts)))


def verdicts(pictures: Pictures, prompts: list[str]) -> dict[str, Any]:
    """Kind of scene -> (n,) whether each picture is right."""
    found: dict[str, list[bool]] = {"single": [], "double": []}
    for picture, prompt in zip(pictures, prompts, strict=True):
        scene = scene_from_caption(prompt)
        found["single" if len(scene.objects) == 1 else "double"].append(judge(picture, scene)["all"])
    return {kind: np.array(right) for kind, right in found.items()}


def compared(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """Shares in per cent, points lost, and how many pictures became wrong and right."""
    return {
        kind: {
            "right": round(100 * float(after[kind].mean()), 2),
            "lost": round(100 * float(before[kind].mean() - after[kind].mean()), 2),
            "became wrong": int((before[kind] & ~after[kind]).sum()),
            "became right": int((~before[kind] & after[kind]).sum()),
        }
        for kind in ALLOWED
    }


def report(figures: dict[str, Any]) -> str:
    """The text of `quantized.md`."""
    lines = [
        "# What quantization does to the pictures of `shapes`",
        "",
        "Held-out prompts, the bundle's defaults, seeds by index; judged by `benchmarks/quality/judge.py` beside the",
        "source's pictures from the same noise. Error: of the guided prediction at guidance scale 7.5, as the gate has",
        "it.",
        "",
        "| | layers in float | error, mean | worst | PSNR, median | one object | lost | two objects | lost |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    shares = [f"{figures['fp32'][kind]} % of {figures['n'][kind]}" for kind in ALLOWED]
    lines.append(f"| fp32 | | | | | {' | | '.join(shares)} | |")
    for to, row in figures["quantized"].items():
        cells = [f"{row[kind]['right']} % | {row[kind]['lost']:+.2f} points" for kind in ALLOWED]
        errors = f"{row['error_mean']:.3f} | {row['error_worst']:.3f} | {row['psnr']:.1f} dB"
        lines.append(f"| {to} | {row['kept']} | {errors} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Judge quantized bundles of the embedded model.")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of each prompt; default: 3")
    parser.add_argument("--keep", action="append", metavar="KIND=N", help="layers in float; default: int8=55, fp8=55")
    parser.add_argument("--out", type=Path, default=RESULTS, help="default: benchmarks/results")
    options = parser.parse_args()
    kept = {to: int(n) for to, _, n in (word.partition("=") for word in options.keep)} if options.keep else KEPT
    prompts: list[str] = json.loads(PROMPTS.read_text())["prompts"] * options.seeds
    calibration = tuple(CALIBRATION.read_text().split("\n")[:-1])

    source = pictures_of(BUNDLE, "openvino", prompts)
    before = verdicts(source, prompts)
    figures: dict[str, Any] = {
        "n": {kind: len(right) for kind, right in before.items()},
        "fp32": {kind: round(100 * float(right.mean()), 2) for kind, right in before.items()},
        "quantized": {},
    }
    for to, layers in kept.items():
        with tempfile.TemporaryDirectory() as folder:
            target = TARGETS[to]
            wanted = QuantizeOptions(to=to, target=target, prompts=calibration, keep_float=layers)
            made = quantize_bundle(BUNDLE, Path(folder) / to, wanted).bundle
            drawn = pictures_of(made.path, BACKENDS[target], prompts)
            recipe = made.manifest.recipe.quantization
        assert recipe is not None
        row = compared(before, verdicts(drawn, prompts))
        row |= {"kept": layers, "error_mean": recipe.error_mean, "error_worst": recipe.error_worst}
        row["psnr"] = float(np.median([psnr(a, b) for a, b in zip(drawn, source, strict=True)]))
        figures["quantized"][to] = row
        print(to, json.dumps(row), flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "quantized.md").write_text(report(figures))
    (options.out / "quantized.json").write_text(json.dumps(figures, indent=1) + "\n")
    print(report(figures))
    print(json.dumps(figures))
    rows = figures["quantized"].values()
    sys.exit(any(row[kind]["lost"] > most for row in rows for kind, most in ALLOWED.items()))


if __name__ == "__main__":
    main()
