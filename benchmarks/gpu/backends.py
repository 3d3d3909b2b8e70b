"""Which backends run on this GPU: ONNX Runtime's CUDA provider, and engines of TensorRT and TensorRT for RTX."""

from pathlib import Path

import numpy as np

from latentrt.export.build.trt_options import BuildOptions
from latentrt.runtime import Pipeline
from latentrt.runtime.backends.trt.library import TRT_BACKENDS
from latentrt.runtime.request import CallOptions

from .fusion import report_fusion
from .places import Place, on_each_backend
from .report import Report

SIZES = {"batch": ["1", "4"], "groups": ["1", "2"]}
PROMPT = "a small red star on a black background"
FEW: CallOptions = {"num_inference_steps": 2, "seed": 1, "output_type": "latent"}


def run(place: Place, report: Report) -> None:
    """Build the engines that other parts use, and draw. Passes if no backend that runs fails."""

    def draws(backend: str, pipe: Pipeline) -> None:
        latents = pipe(PROMPT, **FEW).latents
        report.check(backend, bool(np.isfinite(latents).all()), f"{pipe.backend} draws")

    on_each_backend(place, report, draws, engines=ensure_engines(place, report, "plain"))


def ensure_engines(place: Place, report: Report, name: str, options: BuildOptions | None = None) -> Path:
    """Build missing engines of the place's bundle; return their folder. A library that cannot build is noted."""
    for backend in place.backends:
        if backend in TRT_BACKENDS:
            try:
                seconds = place.build(backend, place.engines(name), options, sizes=SIZES)
                if seconds:
                    report.figure(f"{backend}: seconds of building {name} engines", seconds)
            except Exception as error:  # any error is the finding: this library does not support this GPU
                report.note(f"{backend} does not build: {type(error).__name__}: {error}")
            report_fusion(report, place.bundle, place.engines(name))
    return place.engines(name)
