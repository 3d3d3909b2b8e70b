"""The time of each stage of a picture, and its distance from the limits of the machine.

    python -m benchmarks.speed.stages BUNDLE [--backend onnxruntime ...] [--device cpu] [--height H] [--width W]
        [--batch 1] [--steps 20] [--calls 5] [--repetitions 9]

Each stage runs alone on random inputs of the right sizes: tokenizer, text encoder, `time` for all calls, `context`, one
`denoise` call (the mean over a loop without its first call), VAE decoder, and PNG. The stages of all backends take
turns. The floor is the time for the graph's operations at the measured rate of matrix products, or for its bytes at the
measured bandwidth, whichever is longer. The last line is JSON.
"""

import argparse
import io
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.common.ceilings import floor_seconds, rates
from benchmarks.common.harness import (
    PROMPT,
    Measurement,
    add_pipeline_arguments,
    ddim_plan,
    finish,
    interleaved,
    pipelines,
    show_environment,
    show_table,
)
from latentrt.export.build.onnx_cost import cost_of
from latentrt.runtime import Pipeline
from latentrt.runtime.bundle import Graph, shape_at
from latentrt.runtime.image import pil_from_arrays
from latentrt.runtime.loop.resident import Passed, run
from latentrt.runtime.protocols import Bucket, Trajectory

Arrays = dict[str, NDArray[Any]]


def random_inputs(graph: Graph, sizes: Mapping[str, int]) -> Arrays:
    """Random inputs of a graph: normal numbers, or token ids."""
    random = np.random.default_rng(0)
    found: Arrays = {}
    for spec in graph.inputs:
        shape = shape_at(spec, sizes)
        ids = spec.dtype.startswith("int")
        values = random.integers(0, 1000, shape) if ids else random.standard_normal(shape, np.float32)
        found[spec.name] = values.astype(spec.dtype)
    return found


class Stages:
    """The stages of one pipeline at fixed sizes."""

    def __init__(self, pipe: Pipeline, bucket: Bucket, batch: int, *, steps: int, calls: int) -> None:
        self.pipe, self.bucket, self.batch, self.calls = pipe, bucket, batch, calls
        self.per_call: list[float] = []  # seconds of a call, one value per loop
        model = pipe.bundle.manifest.model
        rows = batch * bucket.groups
        self.sizes = bucket.sizes(batch)
        # Text is encoded once per prompt; `time` runs once for all calls.
        self.rows = {encoder.graph: bucket.groups for encoder in model.text_encoders}
        self.rows |= {"context": rows, "time": rows * steps}
        self.graphs = (*self.rows, "vae_decoder")

    def sizes_of(self, graph: str) -> dict[str, int]:
        """The size of each symbol of a graph."""
        return self.sizes | {"n": self.rows.get(graph, self.batch * self.bucket.groups)}

    def cases(self) -> dict[str, Callable[[], object]]:
        """A function for each stage that runs it once."""
        found: dict[str, Callable[[], object]] = {"tokenize": partial(self.pipe.tokenizer.encode, [PROMPT, ""])}
        for graph in self.graphs:
            inputs = random_inputs(self.pipe.bundle.graph(graph), self.sizes_of(graph))
            found[graph] = partial(self.pipe.run, graph, inputs)
        found["denoise"] = self.loop()
        factor = self.pipe.bundle.manifest.model.vae_scale_factor
        shape = (self.batch, self.bucket.height * factor, self.bucket.width * factor, 3)
        found["picture and PNG"] = partial(_png, np.random.default_rng(0).integers(0, 256, shape, np.uint8))
        return found

    def loop(self) -> Callable[[], object]:
        """A function that runs the denoising loop once and appends to `per_call`."""
        bundle, bucket = self.pipe.bundle, self.bucket
        random = np.random.default_rng(0)
        plan = ddim_plan(bundle, self.calls)
        width = next(spec.shape[-1] for spec in bundle.graph("context").inputs)
        noise = (1, bundle.manifest.model.latent_channels, bucket.height, bucket.width)
        time_inputs = random_inputs(bundle.graph("time"), {"n": bucket.groups})
        extra = [spec for spec in bundle.graph("denoise").inputs if spec.name == "extra"]
        trajectories = [
            Trajectory(
                plan,
                random.standard_normal((bucket.groups, bucket.tokens, width), np.float32),
                np.tile(np.array([-6.5, 7.5][-bucket.groups :], np.float32), (self.calls, 1)),
                random.standard_normal(noise, np.float32),
                extra=random.standard_normal(shape_at(extra[0], self.sizes)[1:], np.float32) if extra else None,
                time_inputs={name: array for name, array in time_inputs.items() if name != "timesteps"},
            )
            for _ in range(self.batch)
        ]

        def loop() -> None:
            with closing(self.pipe.slots(bucket, self.batch)) as slots:
                calls = run(slots, trajectories)
                _wait(next(calls))
                start = time.perf_counter()
                for images in calls:
                    last = images
                _wait(last)
                self.per_call.append((time.perf_counter() - start) / (self.calls - 1))

        return loop


def _wait(images: Sequence[Passed]) -> None:
    for fetch in [image.fetch(0) for image in images]:
        fetch.result()


def _png(images: NDArray[np.uint8]) -> None:
    for image in pil_from_arrays(images, [{"parameters": PROMPT}] * len(images)):
        image.save(io.BytesIO(), "PNG")


def measure(stages: Mapping[str, Stages], repetitions: int) -> dict[tuple[str, str], list[float]]:
    """Seconds by (backend, stage), all measured in turns."""
    cases = {(backend, name): case for backend, s in stages.items() for name, case in s.cases().items()}
    seconds = interleaved({f"{backend}: {name}": case for (backend, name), case in cases.items()}, repetitions)
    found = {key: seconds[f"{key[0]}: {key[1]}"] for key in cases}
    return found | {(backend, "denoise"): s.per_call[-repetitions:] for backend, s in stages.items()}


def floors(stages: Stages, device: str, measured: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """For one run of each graph: GFLOP, MB of weights, inputs and outputs, and milliseconds of the floor."""
    bundle, found = stages.pipe.bundle, {}
    for graph in (*stages.graphs, "denoise"):
        cost = cost_of(bundle.file(bundle.graph(graph).file), stages.sizes_of(graph))
        seconds = floor_seconds(cost, measured, bundle.manifest.recipe.precision, device)
        found[graph] = {
            "gflop": sum(cost.flops.values()) / 1e9,
            "mb": (cost.weights + cost.edges) / 1e6,
            "floor_ms": 1000 * seconds,
        }
    return found


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Measure each stage of a picture, and compare it with its floor.")
    add_pipeline_arguments(parser, repetitions=9)
    parser.add_argument("--batch", type=int, default=1, help="images; default: 1")
    parser.add_argument("--steps", type=int, default=20, help="steps of the picture, for `time`; default: 20")
    parser.add_argument("--calls", type=int, default=5, help="calls of the loop that measures `denoise`; default: 5")
    arguments = parser.parse_args()
    card = show_environment()
    before = rates(arguments.device)
    print("the machine: " + ", ".join(f"{name} {rate / 1e9:,.0f} G/s" for name, rate in before.items()), flush=True)
    with pipelines(arguments) as pipes:
        model = next(iter(pipes.values())).bundle.manifest.model
        height, width = (size // model.vae_scale_factor for size in (arguments.height, arguments.width))
        bucket = Bucket(2, height, width, model.text_encoders[0].max_length)
        stages = {
            backend: Stages(pipe, bucket, arguments.batch, steps=arguments.steps, calls=arguments.calls)
            for backend, pipe in pipes.items()
        }
        seconds = measure(stages, arguments.repetitions)
        # Measured again, and the higher rate taken, as other work on the machine may have disturbed the first.
        measured = {name: max(rate, before[name]) for name, rate in rates(arguments.device).items()}
        least = floors(next(iter(stages.values())), arguments.device, measured)
    name = f"{arguments.bundle.absolute().name} {arguments.width}x{arguments.height}, batch {arguments.batch}"
    measurements = [
        Measurement(f"{name}: {backend}: {stage}", "ms", [1000 * value for value in values])
        for (backend, stage), values in seconds.items()
    ]
    rows = []
    milliseconds: dict[str, dict[str, float]] = {backend: {} for backend in stages}
    for (backend, stage), found in zip(seconds, measurements, strict=True):
        milliseconds[backend][stage] = found.p50
        floor = least.get(stage, {}).get("floor_ms")
        above = (f"{floor:,.2f}", f"{found.p50 / floor:.2f}") if floor else ("", "")
        rows.append((f"{backend}: {stage}", f"{found.p50:,.2f}", *above))
    show_table(("stage", "ms", "floor", "times"), rows)
    results = {
        "model": arguments.bundle.absolute().name,
        "height": arguments.height,
        "width": arguments.width,
        "batch": arguments.batch,
        "steps": arguments.steps,
        "rates": measured,
        "floors": least,
        "milliseconds": milliseconds,
    }
    finish("stages", card, results, [], measurements)


if __name__ == "__main__":
    main()
