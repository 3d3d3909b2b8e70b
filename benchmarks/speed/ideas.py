"""The gain of each idea of the design: the same work with and without it, in turns.

    python -m benchmarks.speed.ideas BUNDLE [--backend onnxruntime] [--device cpu] [--height H] [--width W] [--calls 8]
        [--repetitions 7]

- `time` and `context` outside the loop: one loop of all calls, against as many loops of one call, each of which
  computes them again.
- guidance and scheduler update inside the graph: loops of one call, against the same with the state read and updated by
  numpy in between.
- no second guidance group at scale 1: one group, against two groups of which one has weight 0.
- weights mapped from their file (ONNX Runtime on a CPU only): a session of the bundle's `denoise`, against a session of
  the same graph with its weights inside; seconds to load it and peak resident memory, in child processes.

The ratio is the time without the idea over the time with it, as the median over the turns; above 1 the idea pays. The
last line is JSON.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
from benchmarks.common.paths import ROOT
from latentrt.runtime import Bundle, Pipeline, Plan
from latentrt.runtime.loop.resident import run
from latentrt.runtime.protocols import Trajectory
from latentrt.runtime.scheduler import REGISTERS

# Imports as little as possible, as all of it is in the peak.
LOAD = """
import json, sys, time
import onnxruntime
from benchmarks.common.memory import peak_bytes
options = onnxruntime.SessionOptions()
options.log_severity_level = 3
start = time.perf_counter()
onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
seconds = time.perf_counter() - start
print(json.dumps([seconds, peak_bytes() / 2**20]))
"""


class Loops:
    """The denoising loop of a pipeline at fixed sizes, whole and in pieces."""

    def __init__(self, pipe: Pipeline, height: int, width: int, calls: int) -> None:
        bundle = pipe.bundle
        model = bundle.manifest.model
        factor, random = model.vae_scale_factor, np.random.default_rng(0)
        self._pipe, self._sizes = pipe, (height // factor, width // factor)
        self._tokens = model.text_encoders[0].max_length
        self.plan = ddim_plan(bundle, calls)
        hidden = next(spec.shape[-1] for spec in bundle.graph("context").inputs)
        self._context = random.standard_normal((2, self._tokens, hidden), np.float32)
        self._noise = random.standard_normal((1, model.latent_channels, *self._sizes), np.float32)

    def whole(self, weights: tuple[float, ...] = (-6.5, 7.5)) -> NDArray[np.float32]:
        """Run all calls in one loop; return the latents."""
        return self._run(self.plan, self._noise, weights)[:, 0]

    def pieces(self) -> NDArray[np.float32]:
        """Run a loop for each call, in which text and timestep go through their graphs again; return the latents.

        The calls do not depend on each other, so nothing waits between them.
        """
        for k in range(len(self.plan)):
            state = self._run(_only(self.plan, k), self._noise)
        return state[:, 0]

    def numpy_between(self) -> NDArray[np.float32]:
        """Run a loop for each call, which only predicts; read and update the state on the host; return the latents."""
        state = np.tensordot(self.plan.initial, np.stack([self._noise, 0 * self._noise]), 1)
        for k in range(len(self.plan)):
            prediction = self._run(_prediction(self.plan, k), state[0])
            everything = np.concatenate([state, prediction, 0 * prediction])
            state = np.tensordot(self.plan.coefficients[k], everything, 1).astype(np.float32)
        return state[0]

    def _run(
        self, plan: Plan, noise: NDArray[np.float32], weights: tuple[float, ...] = (-6.5, 7.5)
    ) -> NDArray[np.float32]:
        groups = len(weights)
        guidance = np.tile(np.array(weights, np.float32), (len(plan), 1))
        trajectory = Trajectory(plan, self._context[-groups:], guidance, noise)
        with closing(self._pipe.slots(trajectory.bucket, 1)) as slots:
            *_, (last,) = run(slots, [trajectory])
            return last.fetch(0).result()[None, None]


def _only(plan: Plan, k: int) -> Plan:
    """A plan of call k alone."""
    return replace(
        plan,
        timesteps=plan.timesteps[k : k + 1],
        coefficients=plan.coefficients[k : k + 1],
        draws=plan.draws[k : k + 1],
        noise_levels=plan.noise_levels[k : k + 2],
        blend=plan.blend[k : k + 1],
        guidance=plan.guidance[k : k + 1],
    )


def _prediction(plan: Plan, k: int) -> Plan:
    """A plan of call k that leaves the guided prediction in row 0, starting from the given state."""
    only = _only(plan, k)
    coefficients = np.zeros_like(only.coefficients)
    coefficients[0, 0, REGISTERS] = 1
    initial = np.zeros_like(only.initial)
    initial[0, 0] = 1
    return replace(only, coefficients=coefficients, initial=initial)


def rows(pipe: Pipeline, height: int, width: int, calls: int, repetitions: int) -> dict[str, dict[str, Any]]:
    """For each idea the seconds with and without it, and their ratio.

    Raises:
        RuntimeError: the loop in pieces draws other latents than the whole loop.
    """
    loops = Loops(pipe, height, width, calls)
    whole, pieces = loops.whole(), loops.numpy_between()
    difference = float(np.abs(whole - pieces).max() / np.abs(whole).max())
    if not difference < 1e-2:
        raise RuntimeError(f"the loop in pieces differs from the whole loop by {difference:.1e}: nothing was timed")
    cases: dict[str, Callable[[], object]] = {
        "whole": loops.whole,
        "pieces": loops.pieces,
        "numpy": loops.numpy_between,
        "one group": partial(loops.whole, (1.0,)),
        "two groups": partial(loops.whole, (0.0, 1.0)),
    }
    seconds = interleaved(cases, repetitions)
    ideas = {
        "time and context outside of the loop": ("whole", "pieces"),
        "guidance and update inside of the graph": ("pieces", "numpy"),
        "no second guidance group at scale 1": ("one group", "two groups"),
    }
    return {idea: _row("s", seconds[a], seconds[b]) for idea, (a, b) in ideas.items()}


def _row(unit: str, with_it: list[float], without: list[float]) -> dict[str, Any]:
    return {"unit": unit, "with": with_it, "without": without, "ratio": median_ratio(without, with_it)}


def mapped_weights(bundle: Bundle, repetitions: int) -> dict[str, dict[str, Any]]:
    """Load `denoise` with its weights in a separate file, and inside the ONNX file."""
    import onnx

    beside = bundle.file(bundle.graph("denoise").file)
    with tempfile.TemporaryDirectory() as folder:
        inside = Path(folder) / "denoise.onnx"
        onnx.save_model(onnx.load(beside), inside)
        found: dict[str, list[list[float]]] = {"with": [], "without": []}
        files = {"with": beside, "without": inside}

        def load(name: str) -> None:
            command = [sys.executable, "-c", LOAD, str(files[name])]
            child = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
            found[name].append(json.loads(child.stdout))

        interleaved({name: partial(load, name) for name in files}, repetitions)
    kinds = (("s", "loading"), ("MiB", "peak memory"))
    return {
        f"weights mapped from their file: {kind}": _row(
            unit, *([values[i] for values in found[name][1:]] for name in ("with", "without"))
        )
        for i, (unit, kind) in enumerate(kinds)
    }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Measure the gain of each idea.")
    add_pipeline_arguments(parser, repetitions=7)
    parser.add_argument("--calls", type=int, default=8, help="calls of the loop; default: 8")
    arguments = parser.parse_args()
    card = show_environment()
    model = arguments.bundle.absolute().name
    found: dict[str, Mapping[str, Any]] = {}
    with pipelines(arguments) as pipes:
        for backend, pipe in pipes.items():
            measured = rows(pipe, arguments.height, arguments.width, arguments.calls, arguments.repetitions)
            found |= {f"{backend}: {idea}": row for idea, row in measured.items()}
    if arguments.device == "cpu":
        mapped = mapped_weights(Bundle.open(arguments.bundle), arguments.repetitions)
        found |= {f"onnxruntime-cpu: {idea}": row for idea, row in mapped.items()}
    measurements = [
        Measurement(f"{model}: {idea}: {which}", row["unit"], row[which])
        for idea, row in found.items()
        for which in ("with", "without")
    ]
    medians = {m.name: m.p50 for m in measurements}
    table = [
        (
            idea,
            *(f"{medians[f'{model}: {idea}: {which}']:,.3f}" for which in ("with", "without")),
            row["unit"],
            f"{row['ratio']:.3f}",
        )
        for idea, row in found.items()
    ]
    show_table(("idea", "with", "without", "", "ratio"), table)
    ratios = {idea: row["ratio"] for idea, row in found.items()}
    sizes = {"model": model, "height": arguments.height, "width": arguments.width, "calls": arguments.calls}
    finish("ideas", card, {**sizes, "ratios": ratios}, [], measurements)


if __name__ == "__main__":
    main()
