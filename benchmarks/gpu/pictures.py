"""Pictures of the embedded model on every backend against those of ONNX Runtime on the CPU."""

from typing import Any

import numpy as np

from latentrt.runtime import Pipeline
from latentrt.runtime.goldens import psnr, relative_error, verify_goldens

from .backends import ensure_engines
from .places import TOLERANCE, Place, on_each_backend
from .report import Report

CALLS: dict[str, dict[str, Any]] = {
    "one, dpm++_2m_karras": {"scheduler": "dpm++_2m_karras", "seed": 3},
    "four, euler_a": {"scheduler": "euler_a", "seed": 8, "num_images_per_prompt": 4},
    "one without guidance, pndm": {"scheduler": "pndm", "seed": 5, "guidance_scale": 1.0},
}
PROMPT = "a large yellow triangle on a purple background"
LEAST_PSNR = 35.0  # dB


def run(place: Place, report: Report, steps: int = 20) -> None:
    """Check that latents are within `TOLERANCE` (relative norm of the difference) and pictures above `LEAST_PSNR`."""
    engines = ensure_engines(place, report, "plain")
    expected = {}
    with Pipeline.load(place.bundle, backend="onnxruntime", device="cpu") as cpu:
        for name, call in CALLS.items():
            expected[name] = cpu(PROMPT, num_inference_steps=steps, output_type="np", **call)

    def compare(backend: str, pipe: Pipeline) -> None:
        for name, call in CALLS.items():
            got = pipe(PROMPT, num_inference_steps=steps, output_type="np", **call)
            error = relative_error(got.latents, expected[name].latents)
            report.at_most(f"{backend}: latents of {name}", error, TOLERANCE)
            ratio = psnr(np.asarray(got.images), np.asarray(expected[name].images))
            report.check(f"{backend}: {name}", ratio >= LEAST_PSNR, f"PSNR {ratio:.1f} dB, at least {LEAST_PSNR:g}")
        # A figure and no check, as goldens have limits of their own.
        report.figure(f"{backend}: goldens", {check.name: [check.passed, check.text] for check in verify_goldens(pipe)})

    on_each_backend(place, report, compare, engines=engines)
