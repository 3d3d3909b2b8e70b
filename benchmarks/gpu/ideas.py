"""What each idea of the design gains on this GPU: the same work with and without it, in turns."""

import statistics

from benchmarks.speed.ideas import rows
from latentrt.runtime import Pipeline

from .backends import ensure_engines
from .places import Place, on_each_backend
from .report import Report


def run(place: Place, report: Report, calls: int = 20, repetitions: int = 9) -> None:
    """Report medians with and without each idea, and their ratio; above 1 it pays. Passes if both draw the same."""
    engines = ensure_engines(place, report, "plain")

    def measure(backend: str, pipe: Pipeline) -> None:
        defaults = pipe.bundle.manifest.defaults
        for idea, row in rows(pipe, defaults.height, defaults.width, calls, repetitions).items():
            medians = {which: 1000 * statistics.median(row[which]) for which in ("with", "without")}
            report.figure(
                f"{backend}: {idea}",
                {"with_ms": medians["with"], "without_ms": medians["without"], "ratio": row["ratio"]},
            )
        report.check(f"{backend}: ideas", True, "both ways draw the same")

    on_each_backend(place, report, measure, engines=engines)
