"""Compare latentrt with its peers in one run.

    python -m benchmarks.peers [--checkpoint FOLDER --bundle FOLDER] [--peers "latentrt,diffusers"]

All peers get the same weights, prompt, steps, scheduler and initial latents. Each runs in an environment of its own,
which is made if it is missing, with its own default number of threads. First each draws once: a peer whose picture
differs from that of latentrt on ONNX Runtime is reported and not compared. Then the peers take turns: import time; time
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
from benchmarks.common.paths import ROOT, SHAPES_BUNDLE, SHAPES_CHECKPOINT
from latentrt.runtime import TorchGenerator

from .checkpoint import with_public_names
from .compare import Case, Outcome, compare, goals
from .environments import (
    CONVERSIONS,
    ENVIRONMENTS,
    PEERS,
    REMOVED_VARIABLES,
    Peer,
    PeerError,
    clean_variables,
    convert,
    installed_megabytes,
    make_environment,
    program,
)

PROMPT = "a large red star on a blue background"
# Options that all peers support; `KEPT` are taken from the checkpoint. DDIM is exact for zero terminal SNR, too.
SCHEDULERS: Mapping[str, Mapping[str, Any]] = {
    "ddim": {
        "_class_name": "DDIMScheduler",
        "clip_sample": False,
        "set_alpha_to_one": True,
        "steps_offset": 0,
        "timestep_spacing": "trailing",
    },
    "euler": {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "linspace", "steps_offset": 0},
}
KEPT = ("beta_start", "beta_end", "beta_schedule", "num_train_timesteps", "prediction_type", "rescale_betas_zero_snr")


def scheduler_config(checkpoint: Path, name: str) -> dict[str, Any]:
    """The config of a scheduler of `SCHEDULERS` with the checkpoint's betas and prediction type."""
    own = json.loads((checkpoint / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8"))
    return {**SCHEDULERS[name], **{key: own[key] for key in KEPT if key in own}}


def prepare(
    peers: Mapping[str, Peer], arguments: argparse.Namespace, scheduler: Path, reasons: dict[str, str]
) -> tuple[dict[str, Case], dict[str, float]]:
    """Make environments and conversions; return a case for each peer that has both, and the seconds of its conversions.

    `reasons` gets the reason of each peer that cannot be compared.
    """
    name_of_copy = f"{arguments.checkpoint.name}-checkpoint"
    checkpoint = with_public_names(arguments.checkpoint, arguments.models / name_of_copy)
    places = {"bundle": arguments.bundle.resolve(), "checkpoint": checkpoint.resolve()}
    cases: dict[str, Case] = {}
    seconds: dict[str, float] = {}

    def converted(name: str, kind: str) -> Path:
        """The result of a conversion, made if it is missing."""
        conversion = CONVERSIONS[kind]
        make_environment(arguments.environments, conversion.environment, ENVIRONMENTS[conversion.environment])
        size = f"-{arguments.size}" if conversion.depends_on_size else ""
        target = arguments.models / f"{arguments.checkpoint.name}-{kind}{size}"
        took = convert(arguments.environments, kind, {**places, "size": arguments.size}, target)
        seconds[name] = seconds.get(name, 0.0) + took
        return target.resolve()

    for name, peer in peers.items():
        print(f"preparing {name}", flush=True)
        options = dict(peer.options)
        try:
            make_environment(arguments.environments, peer.environment, ENVIRONMENTS[peer.environment])
            place = places.get(peer.model) or converted(name, peer.model)
            if peer.engines:
                options["engines"] = str(converted(name, peer.engines))
        except PeerError as error:
            reasons[name] = str(error)
            continue
        for file in place.rglob("*"):  # read all files into the page cache, so that no peer has to
            if file.is_file():
                file.read_bytes()
        command = (program(arguments.environments, peer.environment), "-u", "-m", f"benchmarks.peers.{peer.worker}")
        load = {"model": str(place), "scheduler": str(scheduler), "options": options}
        cases[name] = Case(command, load)
    return cases, seconds


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
            rows.append((name, *cells, "equal" if decibels is None else f"{decibels:.1f}"))
    show_table(("", "latency s", "load s", "1st picture s", "2nd picture s", "peak MB", "PSNR dB"), rows)
    for name, reason in outcome.reasons.items():
        print(f"{name} is not compared: {reason}")


def main() -> None:
    """The command."""
    build = ROOT / "build" / "peers"
    device = os.environ.get("DEVICE", "cpu")
    parser = argparse.ArgumentParser(description="Compare latentrt with its peers on the same picture.")
    parser.add_argument("--checkpoint", type=Path, default=SHAPES_CHECKPOINT, help="diffusers format; default: shapes")
    parser.add_argument("--bundle", type=Path, default=SHAPES_BUNDLE, help="its bundle; fp32 on a CPU; default: shapes")
    parser.add_argument("--name", help="name of the model in the results; default: name of the checkpoint's folder")
    parser.add_argument("--prompt", default=PROMPT, help=f"default: {PROMPT}")
    parser.add_argument("--steps", type=int, default=20, help="default: 20")
    parser.add_argument("--size", type=int, default=128, help="pixels of each side; default: 128")
    parser.add_argument("--scheduler", choices=tuple(SCHEDULERS), default="ddim", help="default: ddim")
    parser.add_argument("--guidance-scale", type=float, default=4.0, help="default: 4")
    parser.add_argument("--seed", type=int, default=1, help="of the initial latents; default: 1")
    parser.add_argument("--repetitions", type=int, default=5, help="pictures of loaded workers; default: 5")
    parser.add_argument("--cold-starts", type=int, default=3, help="default: 3")
    parser.add_argument("--keep-first", action="store_true", help="count each peer's first process as a cold start")
    parser.add_argument("--imports", type=int, default=5, help="repetitions of the imports; default: 5")
    parser.add_argument("--memory", type=float, default=16.0, help="GiB for all loaded workers; default: 16")
    parser.add_argument("--psnr", type=float, default=30.0, help="minimum PSNR against the first peer; default: 30")
    parser.add_argument("--peers", help="names separated by commas; default: all of the device")
    parser.add_argument("--without", action="append", default=[], metavar="PEER:REASON", help="exclude a peer")
    parser.add_argument("--environments", type=Path, default=build / "environments", help="kept between runs")
    parser.add_argument("--models", type=Path, default=build / "models", help="conversions, kept between runs")
    parser.add_argument("--out", type=Path, default=build / "pictures", help="folder of the compared pictures")
    parser.add_argument("--prepare", action="store_true", help="make environments and conversions, measure nothing")
    arguments = parser.parse_args()
    of_device = [name for name, peer in PEERS.items() if peer.device == device]
    chosen = [name.strip() for name in arguments.peers.split(",")] if arguments.peers else of_device
    for name in chosen:
        if name not in of_device:
            parser.error(f"--peers: unknown peer {name!r} for DEVICE={device}: choose from {', '.join(of_device)}")
    reasons = dict(text.partition(":")[::2] for text in arguments.without)
    peers = {name: PEERS[name] for name in of_device if name in chosen and name not in reasons}
    model = arguments.name or arguments.checkpoint.name
    folder = (arguments.out / model).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    arguments.environments.mkdir(parents=True, exist_ok=True)

    card = show_environment()
    scheduler, latents = folder / "scheduler_config.json", folder / "latents.npy"
    scheduler.write_text(json.dumps(scheduler_config(arguments.checkpoint, arguments.scheduler)), encoding="utf-8")
    np.save(latents, TorchGenerator(arguments.seed).randn((1, 4, arguments.size // 8, arguments.size // 8)))
    cases, conversions = prepare(peers, arguments, scheduler, reasons)
    if arguments.prepare:
        for name, reason in reasons.items():
            print(f"{name} is not compared: {reason}")
        return
    job = {
        "prompt": arguments.prompt,
        "steps": arguments.steps,
        "size": arguments.size,
        "guidance_scale": arguments.guidance_scale,
        "seed": arguments.seed,
        "latents": str(latents),
    }
    outcome = compare(
        cases,
        job,
        folder,
        psnr_floor=arguments.psnr,
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
            "job": {**job, "latents": f"TorchGenerator({arguments.seed})", "scheduler": arguments.scheduler},
            "facts": outcome.facts,
            "reasons": outcome.reasons,
            "psnr_floor": arguments.psnr,
            "unset for workers": [name for name in REMOVED_VARIABLES if name in os.environ],
        },
        goals(outcome, sizes, reduced=[name for name, peer in peers.items() if not peer.full_precision]),
        measurements,
    )


if __name__ == "__main__":
    main()
