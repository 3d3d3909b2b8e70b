"""ONNX Runtime with its own group norms against the exported graphs: same pictures, and milliseconds.

Both are also measured with all convolutions channels last (`prefer_nhwc`), where the transposes around group norms can
cancel out; the figures decide whether that becomes the default.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from benchmarks.common.harness import interleaved
from latentrt.export.build.ort_graphs import build_ort_graphs
from latentrt.runtime import Pipeline, Result
from latentrt.runtime.backends.ort import on_gpu
from latentrt.runtime.goldens import psnr, relative_error

from .full_size import bundle_of
from .latency import SAME
from .pictures import LEAST_PSNR
from .places import TOLERANCE, Place, attempt
from .report import Report

PROMPT = "a large yellow triangle on a purple background"
# Variant -> whether its graphs are those of `latentrt build --backend onnxruntime`, and options added to the provider.
VARIANTS: Mapping[str, tuple[bool, Mapping[str, str]]] = {
    "exported": (False, {}),
    "group norms": (True, {}),
    "exported, channels last": (False, {"prefer_nhwc": "1"}),
    "group norms, channels last": (True, {"prefer_nhwc": "1"}),
}


def run(place: Place, report: Report, *, steps: int = 20, repetitions: int = 8) -> None:
    """Compare the embedded model with ONNX Runtime on the CPU, and the full-size model with its exported graphs.

    Passes if all variants draw the same and use the expected graphs. Channels last is a figure, not a check.
    """
    with Pipeline.load(place.bundle, backend="onnxruntime", device="cpu") as cpu:
        expected = draw(cpu, steps)
    look(place, report, "shapes", place.bundle, expected, steps, repetitions)
    full = bundle_of(place)
    if full.exists():
        look(place, report, "sd15", full, None, steps, repetitions)
    else:
        report.note(f"{full} does not exist: run the part full_size first")


def look(
    place: Place, report: Report, name: str, bundle: Path, expected: Result | None, steps: int, repetitions: int
) -> None:
    """Compare latents and pictures of all variants of a bundle with `expected`, then measure their times in turns.

    None for `expected` compares with the exported graphs.
    """
    folder = place.engines(f"{name}-onnxruntime")
    built = sum(one.seconds or 0.0 for one in build_ort_graphs(bundle, devices=["cuda"], engines=folder))
    report.figure(f"{name}: seconds of building", built)
    limit = SAME if expected is None else TOLERANCE
    pipes: dict[str, Pipeline] = {}
    with ExitStack() as stack:
        for variant, (with_norms, options) in VARIANTS.items():
            title = f"{name}, {variant}"
            with session_options(options), warnings_of_sessions() as said:
                try:
                    engines = folder if with_norms else place.engines("none")
                    pipe = Pipeline.load(bundle, backend="onnxruntime", device=place.device, engines=engines)
                    stack.enter_context(pipe)
                    got, again = draw(pipe, steps), draw(pipe, steps)  # the sessions are made at the first call
                except Exception as error:
                    if options:
                        report.note(f"{title} does not run: {error}")
                    else:
                        report.check(title, False, f"{type(error).__name__}: {error}"[:2000])
                    continue
            report.figure(f"{title}: two pictures are bit-identical", bool(np.array_equal(got.latents, again.latents)))
            expected = expected or got
            error, ratio = relative_error(got.latents, expected.latents), psnr(pixels(got), pixels(expected))
            if options:
                report.figure(f"{title}: error of latents, PSNR", [error, ratio])
            else:
                report.check(f"{title}: its graphs are used", not said, "; ".join(said) or "no warning")
                report.at_most(f"{title}: latents", error, limit)
                if limit == TOLERANCE:  # with random weights, pictures say no more than latents
                    text = f"PSNR {ratio:.1f} dB, at least {LEAST_PSNR:g}"
                    report.check(f"{title}: pictures", ratio >= LEAST_PSNR, text)
            pipes[variant] = pipe
        attempt(report, f"{name}: times", partial(times, report, name, pipes, steps, repetitions))


def times(report: Report, name: str, pipes: Mapping[str, Pipeline], steps: int, repetitions: int) -> None:
    """Report median milliseconds of a call of `denoise`, and of the decoder."""
    stages: dict[str, list[dict[str, float]]] = {variant: [] for variant in pipes}

    def kept(variant: str) -> None:
        stages[variant].append(draw(pipes[variant], steps).timings)

    interleaved({variant: partial(kept, variant) for variant in pipes}, repetitions, warm_up=1)
    for variant, rows in stages.items():
        medians = {stage: float(np.median([row[stage] for row in rows[-repetitions:]])) for stage in rows[0]}
        figures = {"denoise_ms_a_call": medians["denoise"] / steps, "vae_decoder_ms": medians["vae_decoder"]}
        report.figure(f"{name}, {variant}", figures)


def draw(pipe: Pipeline, steps: int) -> Result:
    """Draw one picture; the result has its latents, too."""
    return pipe(PROMPT, num_inference_steps=steps, scheduler="euler", seed=3, output_type="np")


def pixels(result: Result) -> np.ndarray[Any, Any]:
    """The pictures as one array."""
    return np.asarray(result.images)


@contextmanager
def session_options(options: Mapping[str, str]) -> Iterator[None]:
    """Add these options to sessions on CUDA that are made in this block."""
    new = on_gpu.new_session

    def with_options(path: Path, device: str, provider: Mapping[str, str], *rest: Any, **more: Any) -> Any:
        return new(path, device, {**provider, **options}, *rest, **more)

    with mock.patch.object(on_gpu, "new_session", with_options):
        yield


@contextmanager
def warnings_of_sessions() -> Iterator[list[str]]:
    """Collect latentrt's warnings in this block, such as of graphs that are not used or not captured."""
    said: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    listener = Listener(logging.WARNING)
    runtime = logging.getLogger("latentrt.runtime")
    runtime.addHandler(listener)
    try:
        yield said
    finally:
        runtime.removeHandler(listener)
