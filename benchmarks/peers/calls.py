"""Compare single UNet calls of latentrt and its peers, at each precision.

    python -m benchmarks.peers.calls [--checkpoint FOLDER --bundle FOLDER] [--size 256] [--rounds 5] [--peers "a,b"]

For models of which a picture takes minutes. A call has two guidance groups and the same inputs in every program: the
text of `--prompt`, and the latents of a picture after the first of two steps. Workers hold the UNet loaded and take
turns. Each runs what its program runs in a step:

- latentrt: a call of its slots, which is UNet, guidance and scheduler update; what does not change from call to call is
  computed before.
- diffusers: `pipe.unet` with both groups, and guidance.
- OpenVINO GenAI has no such interface: OpenVINO compiles the same model with the same properties.
- stable-diffusion.cpp has none either: a step of a picture by its own clock.

A case whose guided prediction differs from the first one's is reported and not compared. Of a case of reduced precision
the signal-to-noise ratio against the same program in full precision is reported. Peak memory is that of the first
process of each, after two calls. The last line is JSON. CPUs only.
"""

import argparse
import json
import math
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.common.harness import Measurement, Target, finish, interleaved, show_environment, show_table
from latentrt.runtime import Pipeline
from latentrt.runtime.goldens import relative_error
from latentrt.runtime.loop.resident import run
from latentrt.runtime.request import Request

from .compare import EQUAL, Case, Outcome
from .environments import PeerError
from .goals import precision_goals
from .setup import add_arguments, chosen_peers, prepare, scheduler_config
from .workers import Residents, Worker

# Of a peer's prediction against that of the first: in full precision, and in reduced.
LARGEST_ERROR, LARGEST_REDUCED_ERROR = 0.01, 1.0
# Patterns of the files that hold a UNet: of a bundle, and of a folder in the format of diffusers or optimum-intel.
UNET_FILES = ("denoise.onnx*", "unet/*.bin", "unet/*.xml", "unet/*.safetensors")
SMALLER = {"UNet on disk": 0.3, "peak memory": 0.6}  # of int8, over fp32


def write_inputs(arguments: argparse.Namespace, scheduler: Mapping[str, Any], file: Path) -> None:
    """Write the inputs of a call, see `protocol`."""
    options = {"height": arguments.size, "width": arguments.size, "guidance_scale": arguments.guidance_scale}
    with Pipeline.load(arguments.bundle, backend="onnxruntime", device="cpu") as pipe:
        stages = pipe.lend()
        call = {**options, "seed": arguments.seed, "num_inference_steps": 2, "scheduler": dict(scheduler)}
        request = Request.from_call(pipe.bundle.manifest, {}, arguments.prompt, call)
        (trajectory,) = stages.trajectories(request)
        slots = stages.slots(trajectory.bucket, 1)
        (passed,) = next(run(slots, [trajectory]))
        sample = passed.fetch(0).result()[None]
        slots.close()
    np.savez(
        file,
        sample=sample,
        timestep=trajectory.plan.timesteps[1],
        hidden_states=trajectory.context,
        guidance_scale=np.float32(arguments.guidance_scale),
    )


def error_of(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """The relative error; inf if it is not finite."""
    error = relative_error(found, expected)
    return error if math.isfinite(error) else math.inf


def decibels(error: float) -> float:
    """A relative error as a signal-to-noise ratio."""
    return EQUAL if error == 0 else min(EQUAL, -20 * math.log10(error))


def unet_megabytes(model: Path) -> float:
    """Size of the files that hold the UNet, with its weights."""
    files = {file for pattern in UNET_FILES for file in model.glob(pattern)}
    return sum(file.stat().st_size for file in files) / 1e6


def first_calls(name: str, case: Case, inputs: Path, folder: Path, outcome: Outcome) -> None:
    """Load in a process of its own and call twice: figures and facts, and the prediction in a file."""
    file = folder / f"{name}.npy"
    file.unlink(missing_ok=True)
    with Worker(case.command) as worker:
        loaded = worker.ask("load", **case.load)
        worker.ask("call", inputs=str(inputs), prediction=str(file))
        worker.ask("call", inputs=str(inputs), prediction=None)
        outcome.add(name, "peak memory", float(worker.ask("memory")["megabytes"]))
    outcome.facts[name] = {**loaded["facts"], "precision": case.precision}
    outcome.add(name, "UNet on disk", unet_megabytes(Path(case.load["model"])))


def judge(name: str, case: Case, reference: str, folder: Path, outcome: Outcome) -> None:
    """Add what the prediction is worth to the facts; drop a case that predicts something else."""
    facts, file = outcome.facts[name], folder / f"{name}.npy"
    if not file.exists():
        return
    found = np.load(file)
    if (own := folder / f"{case.own}.npy").exists() and case.own in outcome.facts:
        facts["psnr own"] = [decibels(error_of(found, np.load(own)))]
    facts["error"] = error = error_of(found, np.load(folder / f"{reference}.npy"))
    largest = LARGEST_REDUCED_ERROR if case.own else LARGEST_ERROR
    if error > largest:
        outcome.drop(name, f"predicts something else: relative error {error:.2g}, expected at most {largest:g}")


def measure(cases: Mapping[str, Case], inputs: Path, folder: Path, rounds: int, limit: float) -> Outcome:
    """Measure all cases in turns; the first that works is the reference. `limit`: megabytes of all loaded workers."""
    outcome = Outcome()
    reference = None
    for name, case in cases.items():
        print(f"first calls of {name}", flush=True)
        try:
            first_calls(name, case, inputs, folder, outcome)
        except PeerError as error:
            outcome.drop(name, str(error))
            continue
        reference = reference or name
        judge(name, case, reference, folder, outcome)
    agreed = list(outcome.figures)
    residents = Residents(
        {name: cases[name].command for name in agreed},
        {name: cases[name].load for name in agreed},
        {name: outcome.figures[name]["peak memory"][0] for name in agreed},
        limit,
        warm_up={},
    )
    taken: dict[str, list[float]] = {name: [] for name in agreed}

    def turn(name: str) -> None:
        if name in outcome.reasons:
            return
        try:
            taken[name].append(float(residents.ask(name, "call", inputs=str(inputs), prediction=None)["seconds"]))
        except PeerError as error:
            outcome.drop(name, str(error))

    try:
        interleaved({name: lambda name=name: turn(name) for name in agreed}, rounds, warm_up=1)
    finally:
        residents.close()
    for name in outcome.figures:
        outcome.figures[name]["call"] = taken[name][1:]
        outcome.facts[name]["starts"] = residents.starts[name]
    return outcome


def smaller(outcome: Outcome) -> list[Target]:
    """Targets of our int8 bundles over our fp32 bundle: size of the UNet on disk, and peak memory."""
    targets = []
    for engine in ("latentrt", "latentrt openvino"):
        full, int8 = (outcome.figures.get(name, {}) for name in (engine, f"{engine} int8"))
        for figure, most in SMALLER.items():
            if figure in full and figure in int8:
                what = f"{figure} of {engine} int8 over {engine}"
                targets.append(Target(what, int8[figure][0] / full[figure][0], most, "times"))
    return targets


def show(outcome: Outcome, cases: Mapping[str, Case]) -> None:
    """Print the table of medians, then the reasons."""
    rows = []
    for name, found in outcome.figures.items():
        facts = outcome.facts[name]
        calls, own = found["call"], facts.get("psnr own")
        spans = [f"{1000 * value:,.1f}" for value in (statistics.median(calls), min(calls), max(calls))]
        cells = [f"{found[figure][0]:,.0f}" for figure in ("peak memory", "UNet on disk")]
        error = f"{facts['error']:.1e}" if "error" in facts else ""
        rows.append((name, cases[name].precision, *spans, *cells, error, f"{own[0]:.1f}" if own else ""))
    head = ("", "precision", "ms", "min", "max", "peak MB", "UNet MB", "error", "dB to its own fp32")
    show_table(head, rows)
    for name, reason in outcome.reasons.items():
        print(f"{name} is not compared: {reason}")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Compare single UNet calls of latentrt and its peers.")
    add_arguments(parser)
    parser.add_argument("--rounds", type=int, default=5, help="calls of each worker, in turns; default: 5")
    arguments = parser.parse_args()
    card = show_environment()
    peers, reasons = chosen_peers(parser, arguments, "cpu", card)
    model = arguments.name or arguments.checkpoint.name
    folder = (arguments.out / f"{model}-calls").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    config = scheduler_config(arguments.checkpoint, arguments.scheduler)
    scheduler, inputs = folder / "scheduler_config.json", folder / "inputs.npz"
    scheduler.write_text(json.dumps(config), encoding="utf-8")
    cases, conversions = prepare(peers, arguments, scheduler, reasons, part="unet")
    if arguments.prepare:
        for name, reason in reasons.items():
            print(f"{name} is not compared: {reason}")
        return
    write_inputs(arguments, config, inputs)
    outcome = measure(cases, inputs, folder, arguments.rounds, arguments.memory * 2**30 / 1e6)
    outcome.reasons = reasons | outcome.reasons
    show(outcome, cases)
    finish(
        "calls",
        card,
        {
            "model": model,
            "width": arguments.size,
            "height": arguments.size,
            "groups": 2,
            "peers": [*peers, *(name for name in reasons if name not in peers)],
            "facts": outcome.facts,
            "reasons": outcome.reasons,
            "largest errors": [LARGEST_ERROR, LARGEST_REDUCED_ERROR],
        },
        [*precision_goals("call", outcome, cases), *smaller(outcome)],
        outcome.measurements(model)
        + [Measurement(f"{model}: {name}: conversion", "s", [took]) for name, took in conversions.items()],
    )


if __name__ == "__main__":
    main()
