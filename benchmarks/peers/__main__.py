"""Compare latentrt with its peers in one run.

    python -m benchmarks.peers [--checkpoint FOLDER --bundle FOLDER] [--peers "latentrt,diffusers"]

All peers get the same weights, prompt, steps, scheduler and initial latents. Each runs in an environment of its own,
which is made if it is missing, with its own default number of threads. First each draws once: a peer whose picture
differs from that of latentrt on ONNX Runtime is reported and not compared; at reduced precision the PSNR against the
same program's picture in full precision is reported too. Then the peers take turns: import time; time
to the first and the second picture of a process, and its peak memory; pictures by loaded workers. If the workers do not
all fit into `--memory`, they are stopped and restarted in turns; loading does not count as latency.

Conversions for peers are made once and kept. The last line is JSON. `DEVICE=cuda` compares the peers that run on a GPU.
"""

import argparse
import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common.harness import Measurement, finish, interleaved, show_environment, show_table
from latentrt.runtime import TorchGenerator

from .compare import Outcome, compare
from .environments import REMOVED_VARIABLES, clean_variables, installed_megabytes, program
from .goals import goals, precision_goals
from .setup import add_arguments, chosen_peers, prepare, scheduler_config
from .table import ENVIRONMENTS, PEERS, Peer


def imports(peers: Mapping[str, Peer], folder: Path, repetitions: int) -> dict[str, list[float]]:
    """Milliseconds to start Python and import each environment's module, by environment."""
    modules = {peer.environment: peer.module for peer in peers.values()}
    variables = clean_variables()

    def run(name: str) -> None:
        subprocess.run((program(folder, name), "-c", f"import {modules[name]}"), env=variables, check=True)

    seconds = interleaved({name: lambda name=name: run(name) for name in modules}, repetitions)
    return {name: [1000 * value for value in values] for name, values in seconds.items()}


def show(outcome: Outcome, peers: Sequence[str]) -> None:
    """Print the table of medians, then the reasons."""
    columns = ("latency", "load", "cold start, first picture", "cold start, second picture", "peak memory")
    rows = []
    for name in peers:
        if found := outcome.figures.get(name):
            cells = [f"{np.median(found[column]):,.2f}" if column in found else "" for column in columns]
            decibels = outcome.facts[name]["psnr"]
            own = outcome.facts[name].get("psnr own")
            cells += ["equal" if decibels is None else f"{decibels:.1f}", f"{np.median(own):.1f}" if own else ""]
            rows.append((name, *cells))
    head = ("latency s", "load s", "1st picture s", "2nd picture s", "peak MB", "PSNR dB", "to its own fp32")
    show_table(("", *head), rows)
    for name, reason in outcome.reasons.items():
        print(f"{name} is not compared: {reason}")


def job_of(arguments: argparse.Namespace, folder: Path, seed: int) -> dict[str, Any]:
    """The "draw" request of a seed, without the picture's file; writes its initial latents."""
    latents = folder / f"latents-{seed}.npy"
    np.save(latents, TorchGenerator(seed).randn((1, 4, arguments.size // 8, arguments.size // 8)))
    names = ("prompt", "steps", "size", "guidance_scale")
    return {**{name: getattr(arguments, name) for name in names}, "seed": seed, "latents": str(latents)}


def main() -> None:
    """The command."""
    device = os.environ.get("DEVICE", "cpu")
    parser = argparse.ArgumentParser(description="Compare latentrt with its peers on the same picture.")
    add_arguments(parser)
    parser.add_argument("--steps", type=int, default=20, help="default: 20")
    parser.add_argument("--repetitions", type=int, default=5, help="pictures of loaded workers; default: 5")
    parser.add_argument("--cold-starts", type=int, default=3, help="default: 3")
    parser.add_argument("--keep-first", action="store_true", help="count each peer's first process as a cold start")
    parser.add_argument("--imports", type=int, default=5, help="repetitions of the imports; default: 5")
    parser.add_argument("--psnr", type=float, default=30.0, help="minimum PSNR against the first peer; default: 30")
    parser.add_argument("--reduced-psnr", type=float, default=15.0, help="the same at reduced precision; default: 15")
    parser.add_argument("--pictures", type=int, default=8, help="pictures that tell a precision's quality; default: 8")
    arguments = parser.parse_args()
    card = show_environment()
    peers, reasons = chosen_peers(parser, arguments, device, card)
    model = arguments.name or arguments.checkpoint.name
    folder = (arguments.out / model).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    scheduler = folder / "scheduler_config.json"
    scheduler.write_text(json.dumps(scheduler_config(arguments.checkpoint, arguments.scheduler)), encoding="utf-8")
    cases, conversions = prepare(peers, arguments, scheduler, reasons)
    if arguments.prepare:
        for name, reason in reasons.items():
            print(f"{name} is not compared: {reason}")
        return
    jobs = [job_of(arguments, folder, arguments.seed + i) for i in range(max(1, arguments.pictures))]
    outcome = compare(
        cases,
        jobs,
        folder,
        psnr_floor=arguments.psnr,
        reduced_floor=arguments.reduced_psnr,
        cold_starts=arguments.cold_starts,
        repetitions=arguments.repetitions,
        limit=arguments.memory * 2**30 / 1e6,
        keep_first=arguments.keep_first,
    )
    outcome.reasons = reasons | outcome.reasons
    measurements = outcome.measurements(model)
    measurements += [Measurement(f"{model}: {n}: conversion", "s", [s]) for n, s in conversions.items()]
    installed = {name: peers[name] for name in cases if not ENVIRONMENTS[peers[name].environment].given}
    sizes = {name: installed_megabytes(arguments.environments, peer.environment) for name, peer in installed.items()}
    if arguments.imports:
        for name, values in imports(installed, arguments.environments, arguments.imports).items():
            measurements.append(Measurement(f"{name}: import", "ms", values))
        of_environment = {installed[name].environment: size for name, size in sizes.items()}
        measurements += [Measurement(f"{name}: installed size", "MB", [size]) for name, size in of_environment.items()]
    show(outcome, list(peers))
    finish(
        "peers",
        card,
        {
            "model": model,
            "width": arguments.size,
            "height": arguments.size,
            "steps": arguments.steps,
            "environments": {name: PEERS[name].environment for name in (*peers, *reasons) if name in PEERS},
            "precisions": {name: peer.precision for name, peer in peers.items()},
            "job": {**jobs[0], "latents": f"TorchGenerator({arguments.seed})", "scheduler": arguments.scheduler},
            "facts": outcome.facts,
            "reasons": outcome.reasons,
            "psnr_floor": arguments.psnr,
            "reduced_psnr_floor": arguments.reduced_psnr,
            "unset for workers": [name for name in REMOVED_VARIABLES if name in os.environ],
        },
        [*goals(outcome, sizes, cases), *precision_goals("latency", outcome, cases)],
        measurements,
    )


if __name__ == "__main__":
    main()
