"""The machine: GPU, driver, clocks, and the versions of all libraries that affect figures. Changes no setting."""

import ctypes
import importlib
import subprocess

from benchmarks.common.harness import environment
from latentrt.runtime.gpu.device import visible_devices

from .places import Place, attempt
from .report import Report

FACTS = (
    "name",
    "driver_version",
    "memory.total",
    "memory.used",
    "utilization.gpu",
    "temperature.gpu",
    "power.draw",
    "power.limit",
    "clocks.sm",
    "clocks.max.sm",
    "clocks.mem",
    "compute_mode",
)
MODULES = ("tensorrt", "tensorrt_rtx", "onnxruntime", "cuda.bindings", "polygraphy", "triton")


def run(_: Place, report: Report) -> None:
    """Report the machine. Passes if CUDA finds a GPU."""
    report.figure("environment", environment())
    try:
        command = ["nvidia-smi", f"--query-gpu={','.join(FACTS)}", "--format=csv,noheader"]
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
        report.figure(
            "nvidia_smi", [dict(zip(FACTS, map(str.strip, g.split(",")), strict=True)) for g in answer.splitlines()]
        )
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        report.note(f"nvidia-smi: {error}")
    versions = {}
    for name in MODULES:
        try:
            module = importlib.import_module(name)
            versions[name] = str(getattr(module, "__version__", "no version"))
        except Exception as error:  # a broken installation can raise anything
            versions[name] = f"not importable: {error}"
    report.figure("modules", versions)
    try:
        report.figure("cuda_driver", _driver_version())
    except OSError as error:
        report.note(f"NVIDIA's driver: {error}")

    def gpus() -> None:
        found = visible_devices()
        text = "; ".join(f"{d.name}, {d.compute_capability}, {d.memory / 2**30:.1f} GiB" for d in found)
        report.check("a GPU is visible", bool(found), text or "none")

    attempt(report, "a GPU is visible", gpus)


def _driver_version() -> str:
    """The newest CUDA version that the driver supports, such as "13.0"."""
    version = ctypes.c_int()
    ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    return f"{version.value // 1000}.{version.value % 1000 // 10}"
