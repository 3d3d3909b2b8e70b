"""Pictures of the embedded model on every backend against those of ONNX Runtime on the CPU."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common.paths import SHAPES_CHECKPOINT
from latentrt.runtime import Pipeline
from latentrt.runtime.goldens import psnr, relative_error, verify_goldens

from .backends import ensure_engines
from .carried import DAMAGED, SHAPES_FP16, archive_of, rejoin
from .places import TOLERANCE, Place, attempt, on_each_backend
from .report import Report

CALLS: dict[str, dict[str, Any]] = {
    "one, dpm++_2m_karras": {"scheduler": "dpm++_2m_karras", "seed": 3},
    "four, euler_a": {"scheduler": "euler_a", "seed": 8, "num_images_per_prompt": 4},
    "one without guidance, pndm": {"scheduler": "pndm", "seed": 5, "guidance_scale": 1.0},
}
PROMPT = "a large yellow triangle on a purple background"
LEAST_PSNR = 35.0  # dB


def run(place: Place, report: Report, steps: int = 20, precisions: Sequence[str] = ("fp32", "fp16")) -> None:
    """Check that latents are within `TOLERANCE` (relative norm of the difference) and pictures above `LEAST_PSNR`.

    The fp16 bundle is compared with its own pictures on the CPU; its latents are a figure.
    """
    if "fp32" in precisions:
        _compare(place, report, steps, "fp32")
    if "fp16" in precisions and attempt(report, "fp16 bundle", partial(make_fp16_bundle, place, report)):
        _compare(replace(place, bundle=fp16_bundle_of(place)), report, steps, "fp16")


def fp16_bundle_of(place: Place) -> Path:
    """Path of the embedded model in fp16."""
    return place.work / "bundles" / SHAPES_FP16


def make_fp16_bundle(place: Place, report: Report) -> None:
    """Make it on first use: of its carried graphs in no time, otherwise by an export."""
    folder, archive = fp16_bundle_of(place), archive_of(place.graphs, SHAPES_FP16)
    if not folder.exists() and archive.exists():
        try:
            rejoin(archive, SHAPES_CHECKPOINT, folder)
        except DAMAGED as error:
            report.note(f"{archive} cannot be used, carry it again: {type(error).__name__}: {error}")
    if not folder.exists():
        from latentrt.export.write import ExportOptions, export_bundle  # imported here because it needs PyTorch

        export_bundle(SHAPES_CHECKPOINT, folder, ExportOptions(precision="fp16"))


def _compare(place: Place, report: Report, steps: int, precision: str) -> None:
    engines = ensure_engines(place, report, "plain" if precision == "fp32" else f"plain-{precision}")
    expected = {}
    with Pipeline.load(place.bundle, backend="onnxruntime", device="cpu") as cpu:
        for name, call in CALLS.items():
            expected[name] = cpu(PROMPT, num_inference_steps=steps, output_type="np", **call)

    def compare(backend: str, pipe: Pipeline) -> None:
        label = backend if precision == "fp32" else f"{backend}, {precision}"
        for name, call in CALLS.items():
            got = pipe(PROMPT, num_inference_steps=steps, output_type="np", **call)
            error = relative_error(got.latents, expected[name].latents)
            if precision == "fp32":
                report.at_most(f"{label}: latents of {name}", error, TOLERANCE)
            else:
                report.figure(f"{label}: latents of {name}", error)
            ratio = psnr(np.asarray(got.images), np.asarray(expected[name].images))
            report.check(f"{label}: {name}", ratio >= LEAST_PSNR, f"PSNR {ratio:.1f} dB, at least {LEAST_PSNR:g}")
        # A figure and no check, as goldens have limits of their own.
        report.figure(f"{label}: goldens", {check.name: [check.passed, check.text] for check in verify_goldens(pipe)})

    on_each_backend(place, report, compare, engines=engines)
