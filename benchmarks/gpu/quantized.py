"""Engines of fp8 and int8 beside those of the unquantized bundle: what they draw, and what a call costs.

What they draw is compared with the embedded model, which is calibrated here. What a call costs is that of the bundle of
SD 1.5's size, if the part `full_size` has made it; its weights are random and its ranges made up, so its pictures say
nothing of quality.
"""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common.harness import median_ratio
from benchmarks.common.paths import CALIBRATION, PROMPTS
from benchmarks.quality.judge import accuracies
from latentrt.runtime import Bundle, InputError, Pipeline, Result
from latentrt.runtime.goldens import psnr, relative_error

from .backends import SIZES
from .full_size import bundle_of
from .fusion import report_fusion
from .ort_options import draw, medians, times
from .places import Place, attempt, opened
from .report import Report

KINDS = ("fp8", "int8")
PLAIN = "unquantized"
BATCH = 4  # pictures of the judge that are drawn at once; there are engines for it
# Most that a share of right pictures may fall, where that is more than one picture: two of 100, and a standard error
# of 100.
LOSSES = {"single/all": 0.02, "double/all": 0.05}


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is drawn.

    Attributes:
        steps: of each picture.
        prompts: of the judge.
        calibration: prompts that the embedded model is calibrated with, and those of its gate.
        repetitions: of each timing.
    """

    steps: int = 20
    prompts: int = 300
    calibration: int = 20
    repetitions: int = 6


def run(place: Place, report: Report, effort: Effort = Effort()) -> None:
    """Check the embedded model's pictures and the engines' arithmetic; report milliseconds of both sizes.

    Passes if an engine is nearer to ONNX Runtime's result of the same quantized bundle than that is to the unquantized
    one, and if the judge finds about as many right pictures.
    """
    for backend in place.backends:
        one = replace(place, backends=(backend,))
        attempt(report, f"{backend}, shapes", partial(_shapes, one, report, effort))
        if bundle_of(place).exists():
            attempt(report, f"{backend}, sd15", partial(_full_size, one, report, effort))
        else:
            report.note(f"{bundle_of(place)} does not exist: run the part full_size first")


def _shapes(place: Place, report: Report, effort: Effort) -> None:
    bundles = {PLAIN: place.bundle}
    for kind in KINDS:
        bundles[kind] = place.work / "bundles" / f"shapes-{kind}"
        if not bundles[kind].exists():
            start = time.perf_counter()
            _calibrate(place.bundle, bundles[kind], kind, effort)
            report.figure(f"seconds of quantizing shapes to {kind}", time.perf_counter() - start)
    engines = {kind: place.engines("plain" if kind == PLAIN else f"shapes-{kind}") for kind in bundles}
    with ExitStack() as stack:
        pipes = dict(_opened(place, report, "shapes", bundles, engines, SIZES, stack))
        if PLAIN not in pipes:
            return
        cpu = {kind: _drawn_on_cpu(bundles[kind], effort.steps) for kind in pipes}
        for kind in [kind for kind in pipes if kind != PLAIN]:
            title = f"{place.backends[0]}, shapes {kind}"
            error = relative_error(draw(pipes[kind], effort.steps).latents, cpu[kind].latents)
            cost = relative_error(cpu[kind].latents, cpu[PLAIN].latents)
            text = f"{error:.2e} from ONNX Runtime, at most {cost:.2e}, which is what {kind} costs"
            report.check(f"{title}: latents", error <= cost, text)
        _judge(place, report, pipes, effort)
        _compare(place, report, "shapes", pipes, effort)


def _calibrate(source: Path, out: Path, kind: str, effort: Effort) -> None:
    """Quantize for TensorRT on the CPU, with one calibration for all kinds.

    The judge decides later, so the gate lets everything pass.
    """
    from latentrt.export.quantize import QuantizeOptions, quantize_bundle  # imported here: they need onnx_ir
    from latentrt.export.quantize.observe import read_calibration

    prompts = CALIBRATION.read_text(encoding="utf-8").splitlines()[: effort.calibration]
    options = QuantizeOptions(kind, "tensorrt", prompts=tuple(prompts), gate_mean=1000, gate_worst=1000)
    files = (out.with_name(f"shapes-{other}") / "quantization.safetensors" for other in KINDS)
    known = next((read_calibration(file) for file in files if file.exists()), None)
    quantize_bundle(source, out, replace(options, steps=effort.steps, calibration=known))


def _drawn_on_cpu(bundle: Path, steps: int) -> Result:
    with Pipeline.load(bundle, backend="onnxruntime", device="cpu") as pipe:
        return draw(pipe, steps)


def _judge(place: Place, report: Report, pipes: Mapping[str, Pipeline], effort: Effort) -> None:
    """Compare the shares of right pictures, and the pictures themselves with those of the unquantized bundle."""
    prompts = json.loads(PROMPTS.read_text(encoding="utf-8"))["prompts"]
    prompts = prompts[:: max(1, len(prompts) // effort.prompts)][: effort.prompts]
    drawn = {kind: list(_pictures(pipe, prompts, effort.steps)) for kind, pipe in pipes.items()}
    shares = {kind: accuracies(lambda _, kind=kind: drawn[kind], prompts) for kind in pipes}
    for kind, found in shares.items():
        title = f"{place.backends[0]}, shapes {kind}"
        report.figure(f"{title}: shares of right pictures", found)
        if kind == PLAIN:
            continue
        ratios = [psnr(*pair) for pair in zip(drawn[kind], drawn[PLAIN], strict=True)]
        report.figure(f"{title}: PSNR to the unquantized, median and worst", [float(np.median(ratios)), min(ratios)])
        for key, loss in LOSSES.items():
            if key in found:
                least = shares[PLAIN][key] - max(loss, 1.001 / found[f"{key.partition('/')[0]}/n"])
                report.check(f"{title}: {key}", found[key] >= least, f"{found[key]:.3f}, at least {least:.3f}")


def _pictures(pipe: Pipeline, prompts: Sequence[str], steps: int) -> Iterator[Any]:
    for at in range(0, len(prompts), BATCH):
        these = list(prompts[at : at + BATCH])
        seeds = list(range(at, at + len(these)))
        yield from np.asarray(pipe(these, seed=seeds, num_inference_steps=steps, output_type="np").images)


def _full_size(place: Place, report: Report, effort: Effort) -> None:
    from benchmarks.common.made_up_ranges import with_made_up_ranges  # imported here: it needs onnx_ir

    bundles, engines = {PLAIN: bundle_of(place)}, {PLAIN: place.engines("sd15")}
    for kind in KINDS:
        bundles[kind], engines[kind] = place.work / f"sd15-{kind}", place.engines(f"sd15-{kind}")
        if not bundles[kind].exists():
            _made_whole(bundles[kind], partial(with_made_up_ranges, bundles[PLAIN], to=kind))
        if not engines[kind].exists() and engines[PLAIN].exists():  # all engines but that of `denoise` are the same
            _made_whole(engines[kind], partial(shutil.copytree, engines[PLAIN], copy_function=os.link))
    with ExitStack() as stack:
        pipes = dict(_opened(place, report, "sd15", bundles, engines, {"batch": ["1"]}, stack))
        if PLAIN in pipes:
            _compare(place, report, "sd15", pipes, effort)


def _made_whole(folder: Path, make: Callable[[Path], object]) -> None:
    """Make a folder, which appears only when it is complete."""
    unfinished = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    make(unfinished)
    unfinished.replace(folder)


def _opened(
    place: Place,
    report: Report,
    name: str,
    bundles: Mapping[str, Path],
    engines: Mapping[str, Path],
    sizes: Mapping[str, Sequence[str]],
    stack: ExitStack,
) -> Iterator[tuple[str, Pipeline]]:
    """Kind and pipeline of each bundle whose engines can be built, which the stack closes."""
    (backend,) = place.backends
    for kind, bundle in bundles.items():
        graphs = Bundle.open(bundle).manifest.needed_graphs
        try:
            seconds = replace(place, bundle=bundle).build(backend, engines[kind], sizes=sizes, graphs=graphs)
        except InputError as error:  # this GPU has no fp8
            report.note(f"{backend}, {name} {kind}: {error}")
            continue
        except Exception as error:  # any error is the finding: this library does not build here
            say = report.note if kind != PLAIN else partial(report.leave_out, backend)
            say(f"does not build {name} {kind}: {type(error).__name__}: {error}")
            continue
        report.figure(f"{backend}, {name} {kind}: seconds of building", seconds)
        report_fusion(report, bundle, engines[kind], f"{name} {kind}", ["denoise"])
        for _, pipe in opened(place, report, engines=engines[kind], bundle=bundle):
            yield kind, stack.enter_context(pipe)


def _compare(place: Place, report: Report, name: str, pipes: Mapping[str, Pipeline], effort: Effort) -> None:
    """Milliseconds in turns, and the error of the latents against those of the unquantized bundle."""
    expected = draw(pipes[PLAIN], effort.steps)
    found = times(pipes, effort.steps, effort.repetitions)
    for kind, stages in found.items():
        figures = medians(stages)
        if kind != PLAIN:
            key = "denoise_ms_a_call"
            figures["denoise_over_unquantized"] = median_ratio(stages[key], found[PLAIN][key])
            figures["error_of_latents"] = relative_error(draw(pipes[kind], effort.steps).latents, expected.latents)
        report.figure(f"{place.backends[0]}, {name} {kind}", figures)
