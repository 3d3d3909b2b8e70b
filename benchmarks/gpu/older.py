"""Whether an engine of TensorRT for RTX that was built for compute capability 8.0 runs on this GPU.

The library does not list all GPUs, such as Hopper. Running on one that is not listed may crash, so this is a part of
its own, and the only one that loads engines that the library refuses: it may refuse one that would run. The result is a
figure: the part passes either way.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from latentrt.export.build.trt_options import BuildOptions
from latentrt.runtime import Pipeline
from latentrt.runtime.backends.trt.library import TrtLibrary
from latentrt.runtime.gpu.device import visible_devices

from .backends import FEW, PROMPT
from .places import Place
from .report import Report

OLDER = "8.0"


def run(place: Place, report: Report) -> None:
    """Build, load, draw, and compare with the CPU; the report shows which step was reached."""
    if "tensorrt_rtx" not in place.backends:
        return
    folder = place.engines("older")
    shutil.rmtree(folder, ignore_errors=True)
    try:
        seconds = place.build("tensorrt_rtx", folder, BuildOptions(compute_capabilities=(OLDER,)))
        report.figure(f"seconds of building for {OLDER}", seconds)
        claim_capability(folder, visible_devices()[0].compute_capability)
        unasked = mock.patch.object(TrtLibrary, "why_invalid", noted(report))
        with unasked, Pipeline.load(place.bundle, backend="tensorrt_rtx", engines=folder) as pipe:
            latents = pipe(PROMPT, **FEW).latents
            report.figure("drawn on", pipe.backend)
        with Pipeline.load(place.bundle, backend="onnxruntime", device="cpu") as cpu:
            expected = cpu(PROMPT, **FEW).latents
        report.figure("largest difference", float(np.abs(latents - expected).max() / np.abs(expected).max()))
    except Exception as error:
        report.figure("does not run", f"{type(error).__name__}: {error}")


def noted(report: Report) -> Callable[[TrtLibrary, Any, bytes], None]:
    """A `why_invalid` that reports what the library says, and lets every engine pass."""
    ask = TrtLibrary.why_invalid

    def why_invalid(library: TrtLibrary, runtime: Any, serialized: bytes) -> None:
        if (reason := ask(library, runtime, serialized)) is not None:
            report.figure("the library refuses", reason)

    return why_invalid


def claim_capability(folder: Path, capability: str) -> None:
    """Add this capability to a list of engines; the runtime would refuse them otherwise."""
    file = folder / "engines.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    for record in content["engines"]:
        record["compute_capabilities"] = sorted({*record["compute_capabilities"], capability})
    file.write_text(json.dumps(content), encoding="utf-8")
