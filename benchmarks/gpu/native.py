"""The C++ library on the GPU by ONNX Runtime's provider: goldens, and pictures beside those of Python on the CPU."""

import os
import subprocess

import numpy as np
from PIL import Image

from benchmarks.common.paths import ROOT, onnxruntime_library
from latentrt.runtime import Pipeline
from latentrt.runtime.goldens import psnr, relative_error

from .pictures import LEAST_PSNR, PROMPT
from .places import TOLERANCE, Place
from .report import Report

# What `make native` built on another machine may be carried here.
PROGRAM = ROOT / "out" / "native" / "latentrt-draw"
SCHEDULERS = ("euler_a", "dpm++_2m_karras")


def run(place: Place, report: Report, steps: int = 20) -> None:
    """Check that goldens are reached, and that latents and pictures are as near to the CPU's as those of Python."""
    library = onnxruntime_library()
    if not PROGRAM.is_file() or library is None:
        missing = "ONNX Runtime's library is not in its package" if PROGRAM.is_file() else f"{PROGRAM} is not here"
        report.leave_out("onnxruntime", f"is not tried by the C++ library: {missing}; carry what make native built")
        return
    place.work.mkdir(parents=True, exist_ok=True)
    call = [PROGRAM, "--bundle", place.bundle, "--provider", place.device, "--onnxruntime", library]
    verified = _run([*call, "--verify"])
    report.check("C++: goldens", verified.returncode == 0, (verified.stdout + verified.stderr).replace("\n", "; "))
    with Pipeline.load(place.bundle, backend="onnxruntime", device="cpu") as cpu:
        for scheduler in SCHEDULERS:
            expected = cpu(PROMPT, num_inference_steps=steps, scheduler=scheduler, seed=3)
            picture, latents = place.work / "native.png", place.work / "native.npy"
            options = [
                "--scheduler",
                scheduler,
                "--steps",
                steps,
                "--seed",
                3,
                "-o",
                picture,
                "--save-latents",
                latents,
            ]
            drawn = _run([*call, PROMPT, *options])
            if drawn.returncode:
                report.check(f"C++: {scheduler}", False, drawn.stderr[-500:])
                continue
            report.at_most(
                f"C++: latents of {scheduler}", relative_error(np.load(latents), expected.latents), TOLERANCE
            )
            ratio = psnr(np.asarray(Image.open(picture)), np.asarray(expected.images[0]))
            report.check(f"C++: {scheduler}", ratio >= LEAST_PSNR, f"PSNR {ratio:.1f} dB, at least {LEAST_PSNR:g}")


def _run(command: list[object]) -> "subprocess.CompletedProcess[str]":
    libraries = os.pathsep.join([str(PROGRAM.parent), os.environ.get("LD_LIBRARY_PATH", "")])
    return subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "LD_LIBRARY_PATH": libraries},
    )
