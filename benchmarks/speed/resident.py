"""Images that share UNet calls against images drawn one by one, on the same slots' loop.

    python -m benchmarks.speed.resident BUNDLE [--images 8] [--steps 20] [--backend NAME …] [--repetitions 5]

`together`: all join one `Resident` at once. `in turns`: as many, but two join at a time, every fourth call, so that the
batch grows and shrinks. `one by one`: each runs in slots for one image. Text and timesteps are encoded inside of what
is timed; latents are read at the end. The last line is JSON.
"""

import argparse
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial

import numpy as np

from benchmarks.common.harness import (
    Measurement,
    add_pipeline_arguments,
    ddim_plan,
    finish,
    interleaved,
    median_ratio,
    pipelines,
    show_environment,
    show_table,
)
from latentrt.runtime import Pipeline
from latentrt.runtime.loop.resident import Passed, Resident, run
from latentrt.runtime.protocols import Bucket, Slots, Trajectory

from .stages import random_inputs

EVERY = 4  # calls between two joins of `in turns`


def trajectories(pipe: Pipeline, bucket: Bucket, count: int, steps: int) -> list[Trajectory]:
    """Images of random texts and noise, guided, all on one DDIM plan."""
    bundle, random = pipe.bundle, np.random.default_rng(0)
    plan = ddim_plan(bundle, steps)
    width = next(spec.shape[-1] for spec in bundle.graph("context").inputs)
    time_inputs = random_inputs(bundle.graph("time"), {"n": bucket.groups})
    del time_inputs["timesteps"]
    return [
        Trajectory(
            plan,
            context=random.standard_normal((bucket.groups, bucket.tokens, width), np.float32),
            guidance=np.tile(np.array([-6.5, 7.5], np.float32), (steps, 1)),
            noise=random.standard_normal(
                (1, bundle.manifest.model.latent_channels, bucket.height, bucket.width), np.float32
            ),
            time_inputs=time_inputs,
        )
        for _ in range(count)
    ]


def one_by_one(pipe: Pipeline, wanted: Sequence[Trajectory]) -> None:
    """Each in slots of its own."""
    for trajectory in wanted:
        with closing(pipe.slots(trajectory.bucket, 1)) as slots:
            *_, last = run(slots, [trajectory])
            _read(last)


def together(slots: Slots, wanted: Sequence[Trajectory]) -> None:
    """All from the first call to the last."""
    *_, last = run(slots, wanted)
    _read(last)


def in_turns(slots: Slots, wanted: Sequence[Trajectory]) -> None:
    """Two join at a time, while others are on their way."""
    resident, waiting, calls = Resident(slots), list(wanted), 0
    while waiting or resident.busy:
        if calls % EVERY == 0:
            for trajectory in (waiting.pop(0) for _ in range(min(2, len(waiting)))):
                resident.join(trajectory)
        _read([passed for passed in resident.step() if passed.finished])
        calls += 1


def _read(finished: Sequence[Passed]) -> None:
    for fetch in [passed.fetch(0) for passed in finished]:
        fetch.result()


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Compare images that share UNet calls with images one by one.")
    add_pipeline_arguments(parser, repetitions=5)
    parser.add_argument("--images", type=int, default=8, help="default: 8")
    parser.add_argument("--steps", type=int, default=20, help="default: 20")
    arguments = parser.parse_args()
    card = show_environment()
    cases: dict[str, Callable[[], None]] = {}
    with pipelines(arguments) as pipes:
        for backend, pipe in pipes.items():
            model = pipe.bundle.manifest.model
            height, width = (size // model.vae_scale_factor for size in (arguments.height, arguments.width))
            bucket = Bucket(2, height, width, model.text_encoders[0].max_length)
            wanted = trajectories(pipe, bucket, arguments.images, arguments.steps)
            slots = pipe.slots(bucket, arguments.images)
            cases[f"{backend}: one by one"] = partial(one_by_one, pipe, wanted)
            cases[f"{backend}: together"] = partial(together, slots, wanted)
            cases[f"{backend}: in turns"] = partial(in_turns, slots, wanted)
        seconds = interleaved(cases, arguments.repetitions)
    name = f"{arguments.bundle.absolute().name} {arguments.width}x{arguments.height}, {arguments.images} images"
    rows = []
    for case, values in seconds.items():
        base = seconds[f"{case.split(':')[0]}: one by one"]
        rows.append((case, f"{np.median(values):,.3f}", f"{median_ratio(values, base):.2f}"))
    show_table(("case", "s", "of one by one"), rows)
    measurements = [Measurement(f"{name}: {case}", "s", values) for case, values in seconds.items()]
    results = {"bundle": arguments.bundle.absolute().name, "images": arguments.images, "steps": arguments.steps}
    finish("resident", card, {**results, "ratios": {row[0]: float(row[2]) for row in rows}}, [], measurements)


if __name__ == "__main__":
    main()
