"""Seconds from prompt to picture by steps, batch and size; pictures per second; and the time of a change of LoRA.

    python -m benchmarks.speed.latency BUNDLE [--backend onnxruntime ...] [--device cpu] [--height H] [--width W]
        [--steps 1 4 20 50] [--batches 1 2 4 8] [--sizes 64 192] [--few-steps 4] [--repetitions 5]

Each case is a whole call, PIL images included, of a pipeline that has drawn at this size before. The backends take
turns within a case, and cases follow each other, so that the size does not change in every call. The first call at a
size is measured separately, as OpenVINO compiles `denoise` for each size. Steps are varied with one picture; batches
and square sizes (in pixels) at `--few-steps`. With DDIM a step is one UNet call, which computes both guidance groups.
The last line is JSON.
"""

import argparse
import tempfile
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.common.harness import (
    PROMPT,
    Measurement,
    add_pipeline_arguments,
    finish,
    interleaved,
    pipelines,
    show_environment,
    show_table,
)
from benchmarks.common.random_lora import random_lora
from latentrt.runtime import Pipeline


def calls(arguments: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and options of each measured call."""
    height, width, few = arguments.height, arguments.width, arguments.few_steps
    wanted = [(steps, 1, height, width) for steps in arguments.steps]
    wanted += [(few, batch, height, width) for batch in arguments.batches]
    wanted += [(few, 1, size, size) for size in arguments.sizes]
    for steps, batch, h, w in dict.fromkeys(wanted):
        options = {"num_inference_steps": steps, "num_images_per_prompt": batch, "height": h, "width": w}
        yield f"{w}x{h}, batch {batch}, {steps} steps", options


def measure(
    model: str, name: str, pipes: Mapping[str, Pipeline], options: Mapping[str, Any], repetitions: int
) -> Iterator[Measurement]:
    """Measure one case on every backend: its latency, its first call, and its pictures per second."""
    cases = {backend: partial(pipe, PROMPT, scheduler="ddim", seed=0, **options) for backend, pipe in pipes.items()}
    first = interleaved(cases, 1, warm_up=0)
    for backend, values in interleaved(cases, repetitions, warm_up=0).items():
        call = f"{model}: {backend}: {name}"
        yield Measurement(call, "s", values)
        yield Measurement(f"{call}: first", "s", first[backend])
        rates = [options["num_images_per_prompt"] / value for value in values]
        yield Measurement(f"{call}: throughput", "pictures/s", rates, more_is_better=True)


def swap_seconds(pipe: Pipeline, loras: tuple[Path, Path], repetitions: int) -> list[float]:
    """Seconds of changes from one LoRA to another."""
    pipe.set_loras({loras[0]: 1.0})
    seconds = [pipe.set_loras({loras[(turn + 1) % 2]: 1.0}) / 1000 for turn in range(repetitions)]
    pipe.set_loras({})
    return seconds


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Measure calls by steps, batch and size, and changes of LoRA.")
    add_pipeline_arguments(parser, repetitions=5)
    parser.add_argument("--steps", type=int, nargs="*", default=[1, 4, 20, 50], help="default: 1 4 20 50")
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 2, 4, 8], help="default: 1 2 4 8")
    parser.add_argument("--sizes", type=int, nargs="*", default=[], help="sides of squares in pixels; default: none")
    parser.add_argument("--few-steps", type=int, default=4, help="steps for batches and sizes; default: 4")
    parser.add_argument("--no-loras", action="store_true", help="skip changes of LoRA")
    arguments = parser.parse_args()
    card = show_environment()
    model = arguments.bundle.absolute().name
    with pipelines(arguments) as pipes, tempfile.TemporaryDirectory() as folder:
        measurements: list[Measurement] = []
        for name, options in calls(arguments):
            measurements += measure(model, name, pipes, options, arguments.repetitions)
        if not arguments.no_loras:
            one, other = (random_lora(Path(folder) / f"{i}.safetensors", arguments.bundle, i) for i in (0, 1))
            measurements += [
                Measurement(f"{model}: {backend}: change of LoRA", "s", swap_seconds(pipe, (one, other), 3))
                for backend, pipe in pipes.items()
            ]
    rows = [
        (m.name, f"{m.p50:,.3f}", *(f"{m.record()[q]:,.3f}" for q in ("p90", "p99", "min")), m.unit)
        for m in measurements
    ]
    show_table(("call", "p50", "p90", "p99", "min", ""), rows)
    finish("latency", card, {"model": model, "scheduler": "ddim", "unet_calls": "steps"}, [], measurements)


if __name__ == "__main__":
    main()
