"""LoRA on every backend: A, A and B, B, and back to the checkpoint, whose latents must then be bit-identical."""

from pathlib import Path

import numpy as np

from benchmarks.common.random_lora import random_lora
from latentrt.export.build.trt_options import BuildOptions
from latentrt.runtime import Pipeline
from latentrt.runtime.goldens import relative_error
from latentrt.runtime.request import CallOptions

from .backends import ensure_engines
from .places import TOLERANCE, Place, on_each_backend
from .report import Report

PROMPT = "a large white cross on a red background"


def run(place: Place, report: Report, steps: int = 8) -> None:
    """Refit engines and rebuild sessions for each set of LoRA, and compare latents with those of the CPU."""
    engines = ensure_engines(place, report, "refittable", BuildOptions(refittable=True))
    a, b = (random_lora(place.work / f"{name}.safetensors", place.bundle, seed) for seed, name in enumerate("AB"))
    call: CallOptions = {"num_inference_steps": steps, "seed": 12, "output_type": "latent"}
    orders: tuple[dict[Path | str, float], ...] = (
        {},
        {a: 1.0},
        {a: 0.5, b: -0.4},
        {b: 0.7},
        {},
    )
    with Pipeline.load(place.bundle, backend="onnxruntime", device="cpu") as cpu:
        expected = []
        for loras in orders[:-1]:
            cpu.set_loras(loras)
            expected.append(cpu(PROMPT, **call).latents)
    expected.append(expected[0])
    report.figure("relative change of latents by LoRA", [relative_error(e, expected[0]) for e in expected[1:-1]])

    def compare(backend: str, pipe: Pipeline) -> None:
        milliseconds, got = [], []
        for loras, wanted in zip(orders, expected, strict=True):
            milliseconds.append(pipe.set_loras(loras))
            got.append(pipe(PROMPT, **call).latents)
            names = " + ".join(f"{weight} {Path(file).stem}" for file, weight in loras.items()) or "the checkpoint"
            report.at_most(f"{backend}: {names}", relative_error(got[-1], wanted), TOLERANCE)
        equal = np.array_equal(got[0], got[-1])
        report.check(f"{backend}: back to the checkpoint", equal, "bit-identical" if equal else "differs")
        report.figure(f"{backend}: milliseconds of each swap", milliseconds[1:])

    on_each_backend(place, report, compare, engines=engines)
