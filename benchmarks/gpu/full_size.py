"""A random checkpoint of the size of Stable Diffusion 1.5, its fp16 bundle, and engines, for the part `latency`.

They are made on the machine, as they are too large to transfer: in seconds from the graphs of `full_size_graphs.py`, if
these were carried there; otherwise the checkpoint takes seconds and its export minutes. What exists is kept, so the
part can be called again after it ran out of time.
"""

import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from latentrt.runtime.backends.trt.library import TRT_BACKENDS
from latentrt.runtime.bundle.bundle import Bundle
from latentrt.runtime.cli.main import main

from . import carried
from .fusion import report_fusion
from .places import Place
from .report import Report

T = TypeVar("T")


def checkpoint_of(place: Place) -> Path:
    """Path of the checkpoint."""
    return place.work / "sd15.checkpoint"


def bundle_of(place: Place) -> Path:
    """Path of its bundle."""
    return place.work / "sd15"


def run(place: Place, report: Report, pixels: int = 512, batches: tuple[int, ...] = (1, 4)) -> None:
    """Make what is missing, and report the seconds. Passes if the bundle exists; engines that fail are noted."""
    checkpoint, bundle = checkpoint_of(place), bundle_of(place)
    archive = carried.archive_of(place.graphs)
    if not bundle.exists() and archive.exists():
        use_carried(report, archive, checkpoint, bundle)
    if not checkpoint.exists():
        timed(report, "checkpoint", partial(random_checkpoint, checkpoint))
    if not bundle.exists():
        timed(report, "export", partial(command, "export", checkpoint, bundle, "--precision", "fp16"))
    report.check("bundle", bundle.exists(), str(bundle))
    side, each = str(pixels), [word for batch in batches for word in ("--batch", str(batch))]
    engines = place.engines("sd15")
    for backend in place.backends:
        if backend in TRT_BACKENDS and bundle.exists():
            needed = Bundle.open(bundle).manifest.needed_graphs
            graphs = [word for graph in needed for word in ("--graph", graph)]
            words: list[str | Path] = [
                "--backend",
                backend,
                "--height",
                side,
                "--width",
                side,
                *each,
                *graphs,
                "--engines",
                engines,
            ]
            try:
                timed(report, f"{backend} engines", partial(command, "build", bundle, *words))
            except RuntimeError as error:
                report.note(f"{backend}: {error}")
            report_fusion(report, bundle, engines)


def use_carried(report: Report, archive: Path, checkpoint: Path, bundle: Path) -> None:
    """Make checkpoint and bundle from carried graphs; if these are damaged, that is noted, and nothing is made."""
    try:
        restore = partial(carried.restore, archive, checkpoint, bundle)
        same = timed(report, "weights of carried graphs", restore)
        report.figure("weights are those of the export", same)
    except carried.DAMAGED as error:
        report.note(f"{archive} cannot be used, carry it again: {type(error).__name__}: {error}")


def timed(report: Report, name: str, work: Callable[[], T]) -> T:
    """Call `work` and report its seconds."""
    start = time.perf_counter()
    result = work()
    report.figure(f"seconds: {name}", time.perf_counter() - start)
    return result


def random_checkpoint(folder: Path) -> None:
    """Make the checkpoint; it appears at `folder` only when complete."""
    import torch

    from benchmarks.common.make_checkpoint import make_checkpoint

    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    make_checkpoint(partial, "sd15", torch.float16)
    partial.replace(folder)


def command(*words: str | Path) -> None:
    """Run a command of latentrt; raise `RuntimeError` if it fails, with the reason in the log."""
    if main(list(map(str, words))):
        raise RuntimeError(f"latentrt {words[0]} failed: see the last line of the log")
