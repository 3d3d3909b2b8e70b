"""Where a bundle can run on this machine: every backend that loads, one after the other.

Knows pipelines and engines, but not what is checked on them.
"""

import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from latentrt.export.build.profiles import buckets_from_options
from latentrt.export.build.trt_engines import build_engines
from latentrt.export.build.trt_options import BuildOptions
from latentrt.runtime import Pipeline
from latentrt.runtime.backends.trt.library import TRT_BACKENDS
from latentrt.runtime.pipeline import embedded_bundle

from .report import Report

BACKENDS = ("onnxruntime", *TRT_BACKENDS)
# Largest relative error against the CPU, in float32 without TF32.
TOLERANCE = 5e-4


@dataclass(frozen=True, slots=True)
class Place:
    """The arguments that every part gets.

    Attributes:
        work: folder for engines, checkpoints and reports; kept between calls.
        bundle: the bundle with which correctness is checked.
        device: "cuda", or "cpu" to try the parts without a GPU.
        backends: the backends to check.
        graphs: folder of `full_size_graphs.py`, if it was carried here.
    """

    work: Path
    bundle: Path = field(default_factory=embedded_bundle)
    device: str = "cuda"
    backends: Sequence[str] = BACKENDS
    graphs: Path = Path("build/gpu_graphs")

    def engines(self, name: str) -> Path:
        """Folder of the engines with this name."""
        return self.work / "engines" / name

    def build(
        self,
        backend: str,
        folder: Path,
        options: BuildOptions | None = None,
        *,
        sizes: Mapping[str, Sequence[str]] | None = None,
        graphs: Sequence[str] = (),
    ) -> float:
        """Build missing engines without a progress bar; return the seconds.

        `sizes` are those of `latentrt build`: height, width, batch, groups and tokens, each a list. An empty `graphs`
        builds all.
        """
        built = build_engines(
            self.bundle,
            backend,
            lambda opened: buckets_from_options(opened.manifest, **(sizes or {})),
            options,
            engines=folder,
            graphs=graphs,
        )
        return sum(one.seconds or 0.0 for one in built)


def opened(
    place: Place,
    report: Report,
    *,
    engines: Path,
    bundle: Path | None = None,
) -> Iterator[tuple[str, Pipeline]]:
    """Each backend that loads and runs, with a pipeline that the caller closes; the others are left out.

    Args:
        place: what to open, and on which backends.
        report: gets the notes.
        engines: folder of the engines.
        bundle: default: the place's.
    """
    for backend in place.backends:
        folder = engines if backend in TRT_BACKENDS else None
        try:
            pipe = Pipeline.load(bundle or place.bundle, backend=backend, device=place.device, engines=folder)
        except Exception as error:  # a broken installation can raise anything
            report.leave_out(backend, f"does not load: {error}")
            continue
        try:
            pipe.run("time", {"timesteps": np.zeros(1, np.float32)})  # the first use of the GPU
        except Exception as error:
            pipe.close()
            report.leave_out(backend, f"does not run: {error}")
            continue
        yield backend, pipe


def on_each_backend(
    place: Place,
    report: Report,
    test: Callable[[str, Pipeline], None],
    *,
    engines: Path,
) -> None:
    """Call `test(backend, pipeline)` for each backend that runs; an error in one does not stop the others."""
    for backend, pipe in opened(place, report, engines=engines):
        with pipe:
            attempt(report, backend, partial(test, backend, pipe))


def attempt(report: Report, name: str, work: Callable[[], object]) -> bool:
    """Call `work`; an error becomes a failed check. Return whether it succeeded."""
    try:
        work()
    except Exception as error:
        traceback.print_exc()
        report.check(name, False, f"{type(error).__name__}: {error}"[:2000])
        return False
    return True
