"""Upper limits of this GPU: its rates of matrix products, and its memory bandwidth."""

from benchmarks.common.gpu_ceilings import rates

from .places import Place
from .report import Report


def run(place: Place, report: Report, side: int = 8192, megabytes: int = 4096, repetitions: int = 20) -> None:
    """Report the rates in float16, float32 and TF32, and of a copy. Always passes."""
    for name, rate in rates(place.device, side, megabytes, repetitions).items():
        report.figure(name, rate)
    report.check("rates were measured", True, "see the figures")
