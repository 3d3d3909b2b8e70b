"""What rewritten graphs and options of its CUDA provider are worth to ONNX Runtime: same pictures, and milliseconds.

Each variant takes turns with the exported graphs, the most telling first. The figures decide which become defaults.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from benchmarks.common.harness import interleaved, median_ratio
from latentrt.export.build.ort_graphs import build_ort_graphs, chosen_rewrites
from latentrt.runtime import ExportError, Pipeline, Result
from latentrt.runtime.backends.ort import on_gpu
from latentrt.runtime.goldens import psnr, relative_error

from .full_size import bundle_of
from .latency import SAME
from .pictures import LEAST_PSNR
from .places import TOLERANCE, Place, attempt
from .report import Report

PROMPT = "a large yellow triangle on a purple background"
SECONDS = 480.0  # after which no variant is begun
GRAPHS = ("denoise", "vae_decoder")


@dataclass(frozen=True, slots=True)
class Variant:
    """How sessions are made.

    Attributes:
        rewrites: of `latentrt build --backend onnxruntime`; None is the exported graphs.
        options: added to those of the CUDA provider. Such a variant is a figure, not a check.
    """

    rewrites: Sequence[str] | None
    options: Mapping[str, str] = field(default_factory=dict)


BUILT = tuple(chosen_rewrites(["cuda"])["cuda"])
WITH_MULTI_HEAD = (*BUILT, "multi_head_attention")
CHANNELS_LAST = {"prefer_nhwc": "1"}
# Bits of `sdpa_kernel`: 1 flash attention, 2 memory-efficient, 8 cuDNN, 16 unfused, which is what is left.
CUDNN, FLASH = {"sdpa_kernel": "24"}, {"sdpa_kernel": "17"}
EXPORTED = "exported"
VARIANTS: Mapping[str, Variant] = {
    EXPORTED: Variant(None),
    "built": Variant(BUILT),
    "built, channels last": Variant(BUILT, CHANNELS_LAST),
    "multi-head attention": Variant(WITH_MULTI_HEAD),
    "residual group norms, channels last": Variant((*BUILT, "residual_group_norm"), CHANNELS_LAST),
    "built, channels last, fused bias": Variant(BUILT, CHANNELS_LAST | {"fuse_conv_bias": "1"}),
    "exported, channels last": Variant(None, CHANNELS_LAST),
    "packed attention": Variant((*BUILT, "packed_attention")),
    "multi-head attention, cuDNN": Variant(WITH_MULTI_HEAD, CUDNN),
    "multi-head attention, flash": Variant(WITH_MULTI_HEAD, FLASH),
    **{f"only {name}": Variant((name,)) for name in BUILT if name != "attention_casts"},  # SD 1.5 has none
    "residual group norms": Variant((*BUILT, "residual_group_norm")),
    "built, fused bias": Variant(BUILT, {"fuse_conv_bias": "1"}),
    "built, strict layer norms": Variant(BUILT, {"enable_skip_layer_norm_strict_mode": "1"}),
    "built, algorithms by heuristics": Variant(BUILT, {"cudnn_conv_algo_search": "HEURISTIC"}),
    "built, small workspace": Variant(BUILT, {"cudnn_conv_use_max_workspace": "0"}),
}
# For the embedded model, which shows that values are right in float32: graphs only.
OF_SHAPES = (EXPORTED, "built", "multi-head attention", "packed attention", "residual group norms")


@dataclass(frozen=True, slots=True)
class Measurement:
    """What all variants of a bundle share.

    Attributes:
        expected: a result to compare with; None is that of the exported graphs.
        end: on `time.monotonic`, after which no variant is begun.
    """

    place: Place
    report: Report
    name: str
    bundle: Path
    expected: Result | None
    steps: int
    repetitions: int
    end: float


def run(place: Place, report: Report, *, steps: int = 20, repetitions: int = 6, seconds: float = SECONDS) -> None:
    """Compare the embedded model with ONNX Runtime on the CPU, and the full-size model with its exported graphs.

    Passes if all variants without options of the provider draw the same and use the expected graphs.
    """
    end = time.monotonic() + seconds
    with Pipeline.load(place.bundle, backend="onnxruntime", device="cpu") as cpu:
        expected = draw(cpu, steps)
    of_shapes = {title: VARIANTS[title] for title in OF_SHAPES}
    compare(Measurement(place, report, "shapes", place.bundle, expected, steps, repetitions, end), of_shapes)
    full = bundle_of(place)
    if full.exists():
        compare(Measurement(place, report, "sd15", full, None, steps, repetitions, end), VARIANTS)
    else:
        report.note(f"{full} does not exist: run the part full_size first")


def compare(what: Measurement, variants: Mapping[str, Variant]) -> None:
    """Check and measure each variant against the exported graphs, the first, while there is time."""
    slowest = 0.0
    with opened(what, EXPORTED, variants[EXPORTED]) as (exported, said):
        reference = checked(what, EXPORTED, exported, said, what.expected)
        for title in list(variants)[1:]:
            begun = time.monotonic()
            if begun + slowest > what.end:
                what.report.note(f"{what.name}, {title}: no time left")
                continue
            one = partial(measure, what, title, variants[title], exported, what.expected or reference)
            if variants[title].options:  # which a version may not know, or not support on this GPU
                noted(what, title, one)
            else:
                attempt(what.report, f"{what.name}, {title}", one)
            slowest = max(slowest, time.monotonic() - begun)


def noted(what: Measurement, title: str, work: Callable[[], object]) -> None:
    """Call `work`; an error becomes a note."""
    try:
        work()
    except Exception as error:
        what.report.note(f"{what.name}, {title} does not run: {error}")


def measure(what: Measurement, title: str, variant: Variant, exported: Pipeline, expected: Result) -> None:
    """Check one variant, then report its milliseconds, also over those of the exported graphs in the same turns."""
    try:
        build(what, title, variant)
    except ExportError:
        what.report.note(f"{what.name}, {title}: this model has nothing to replace")
        return
    with opened(what, title, variant) as (pipe, said):
        if variant.options:
            figured(what, title, pipe, expected)
        else:
            checked(what, title, pipe, said, expected)
        theirs, ours = times({EXPORTED: exported, title: pipe}, what.steps, what.repetitions).values()
    ratios = {f"{stage}_of_exported": median_ratio(ours[stage], theirs[stage]) for stage in ours}
    what.report.figure(f"{what.name}, {title}", medians(ours) | ratios)
    what.report.figure(f"{what.name}, {EXPORTED}", medians(theirs))  # of the latest turns


def build(what: Measurement, title: str, variant: Variant) -> None:
    """Build a variant's graphs, if it has any, into its folder."""
    if variant.rewrites is not None:
        folder = folder_of(what, title, variant)
        list(build_ort_graphs(what.bundle, devices=["cuda"], engines=folder, graphs=GRAPHS, rewrites=variant.rewrites))


def folder_of(what: Measurement, title: str, variant: Variant) -> Path:
    """Where a variant's graphs are; the exported graphs run where there are none."""
    name = (
        "none" if variant.rewrites is None else f"{what.name}-onnxruntime-{title.replace(', ', '-').replace(' ', '_')}"
    )
    return what.place.engines(name)


@contextmanager
def opened(what: Measurement, title: str, variant: Variant) -> Iterator[tuple[Pipeline, list[str]]]:
    """A variant's pipeline, and latentrt's warnings. Sessions are made at the first call."""
    folder = folder_of(what, title, variant)
    with session_options(variant.options), warnings_of_sessions() as said:  # noqa: SIM117
        with Pipeline.load(what.bundle, backend="onnxruntime", device=what.place.device, engines=folder) as pipe:
            yield pipe, said


def checked(what: Measurement, title: str, pipe: Pipeline, said: Sequence[str], expected: Result | None) -> Result:
    """Check that a variant's graphs are used and draw what is expected; returns its picture."""
    got, full_title = figured(what, title, pipe, expected), f"{what.name}, {title}"
    what.report.check(f"{full_title}: its graphs are used", not said, "; ".join(said) or "no warning")
    if expected is not None:
        limit = SAME if what.expected is None else TOLERANCE
        what.report.at_most(f"{full_title}: latents", relative_error(got.latents, expected.latents), limit)
    if what.expected is not None:  # with random weights, pictures say no more than latents
        ratio = psnr(pixels(got), pixels(what.expected))
        text = f"PSNR {ratio:.1f} dB, at least {LEAST_PSNR:g}"
        what.report.check(f"{full_title}: pictures", ratio >= LEAST_PSNR, text)
    return got


def figured(what: Measurement, title: str, pipe: Pipeline, expected: Result | None) -> Result:
    """Draw twice and report how alike both are, and the first to what is expected; returns the first."""
    got, again = draw(pipe, what.steps), draw(pipe, what.steps)
    alike = bool(np.array_equal(got.latents, again.latents))
    what.report.figure(f"{what.name}, {title}: two pictures are bit-identical", alike)
    if expected is not None:
        figures = [relative_error(got.latents, expected.latents), psnr(pixels(got), pixels(expected))]
        what.report.figure(f"{what.name}, {title}: error of latents, PSNR", figures)
    return got


def times(pipes: Mapping[str, Pipeline], steps: int, repetitions: int) -> dict[str, dict[str, list[float]]]:
    """Milliseconds of a call of `denoise`, and of the decoder: title -> stage -> one value a turn."""
    rows: dict[str, list[Mapping[str, float]]] = {title: [] for title in pipes}

    def kept(title: str) -> None:
        rows[title].append(draw(pipes[title], steps).timings)

    interleaved({title: partial(kept, title) for title in pipes}, repetitions, warm_up=1)
    return {
        title: {
            "denoise_ms_a_call": [row["denoise"] / steps for row in timings[-repetitions:]],
            "vae_decoder_ms": [row["vae_decoder"] for row in timings[-repetitions:]],
        }
        for title, timings in rows.items()
    }


def medians(stages: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The median of each stage."""
    return {stage: float(np.median(values)) for stage, values in stages.items()}


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

    def with_options(file: Any, device: str, provider: Mapping[str, str], *rest: Any, **more: Any) -> Any:
        return new(file, device, {**provider, **options}, *rest, **more)

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
