"""A checkpoint of Stable Diffusion 1.5's size with random weights, its fp16 bundle, and engines, for the latencies.

All of it is made here, as it is too large to carry: seconds for the checkpoint, minutes for the export. What is there
already is kept, so the part may be called again where its time ran out.
"""

import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from latentrt.runtime.backends.engine_fit import needed_graphs
from latentrt.runtime.backends.trt.library import TRT_BACKENDS
from latentrt.runtime.bundle.bundle import Bundle
from latentrt.runtime.cli.main import main

from .places import Place
from .report import Report


def checkpoint_of(place: Place) -> Path:
    """Where the checkpoint is."""
    return place.work / "sd15.checkpoint"


def bundle_of(place: Place) -> Path:
    """Where its bundle is."""
    return place.work / "sd15"


def run(place: Place, report: Report, pixels: int = 512, batches: tuple[int, ...] = (1, 4)) -> None:
    """Make what is missing, with the seconds that each takes; passes where the bundle and the engines of a library are
    there."""
    checkpoint, bundle = checkpoint_of(place), bundle_of(place)
    if not checkpoint.exists():
        timed(report, "checkpoint", partial(random_checkpoint, checkpoint))
    if not bundle.exists():
        timed(report, "export", partial(command, "export", checkpoint, bundle, "--precision", "fp16"))
    report.check("bundle", bundle.exists(), str(bundle))
    side, each = str(pixels), [word for batch in batches for word in ("--batch", str(batch))]
    engines = place.engines("sd15")
    for backend in place.backends:
        if backend in TRT_BACKENDS and bundle.exists():
            needed = needed_graphs(Bundle.open(bundle).manifest)
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


def timed(report: Report, name: str, work: Callable[[], object]) -> None:
    """Do something and report the seconds."""
    start = time.perf_counter()
    work()
    report.figure(f"seconds: {name}", time.perf_counter() - start)


def random_checkpoint(folder: Path) -> None:
    """The checkpoint, in place only once it is whole."""
    import torch

    from benchmarks.common.make_checkpoint import make_checkpoint

    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    make_checkpoint(partial, "sd15", torch.float16)
    partial.replace(folder)


def command(*words: str | Path) -> None:
    """A command of latentrt; raises `RuntimeError` where it fails, whose reason is in the log."""
    if main(list(map(str, words))):
        raise RuntimeError(f"latentrt {words[0]} failed, its last line in the log says why")
