"""Run the benchmarks of a device one after the other, and make its report: `make bench`, `make bench DEVICE=cuda`.

    python -m benchmarks.bench [--device cpu] [--models shapes medium sd15] [--only stages latency …] [--missing]

`shapes` is the embedded model. `medium` (a UNet of 220 M parameters) and `sd15` have random weights; they are exported
once to build/bench and kept. Each benchmark is a process of its own, and its JSON is written to
benchmarks/results/DEVICE/ when it ends. If one fails, it is reported and the others still run.
"""

import argparse
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.common.harness import environment
from benchmarks.common.paths import RESULTS, ROOT, SHAPES_BUNDLE, SHAPES_CHECKPOINT
from benchmarks.reports import report

MADE = ROOT / "build" / "bench"

ON_ALL_DEVICES = ("peers", "stages", "latency", "ideas", "cold_start")
ALL = (*ON_ALL_DEVICES, "calls", "ort_options", "ports")
PORTS = ("control,t2i", "control,t2i,ip-adapter")


@dataclass(frozen=True, slots=True)
class Model:
    """How a model is measured on a CPU, where large models get few steps. On a GPU all are drawn with 20 steps.

    Attributes:
        name: of the model in measurements and files.
        pixels: height and width of the pictures.
        steps: of a picture.
        calls: of the loop in `stages` and `ideas`.
        repetitions: of each case.
        options: more options by kind of benchmark.
        kinds: the benchmarks that are run.
    """

    name: str
    pixels: int
    steps: int = 20
    calls: int = 5
    repetitions: int = 7
    options: Mapping[str, str] = field(default_factory=dict)
    kinds: tuple[str, ...] = (*ON_ALL_DEVICES, "ort_options")


# Not all options, as each takes minutes.
MEMORY_OPTIONS = "--option \"ONNX Runtime's memory\" --option 'exported graphs'"
MODELS = {
    "shapes": Model("shapes", 128, options={"latency": "--sizes 64 192"}),
    "medium": Model(
        "medium",
        256,
        steps=4,
        calls=3,
        repetitions=3,
        options={
            "peers": "--scheduler euler --imports 0 --cold-starts 0 --keep-first --pictures 1",
            "calls": "--scheduler euler",
            "latency": "--steps 1 4 --batches 1 4 --few-steps 1 --repetitions 3",
            "ort_options": MEMORY_OPTIONS,
        },
        kinds=("peers", "calls", "stages", "latency", "ideas", "ort_options", "ports"),
    ),
    # A picture takes minutes, so each peer draws only two, in one process.
    "sd15": Model(
        "sd15",
        512,
        steps=2,
        calls=2,
        repetitions=1,
        options={
            "peers": "--scheduler euler --imports 0 --repetitions 0 --cold-starts 0 --keep-first --pictures 1",
            "calls": "--scheduler euler",
            "ort_options": f"{MEMORY_OPTIONS} --processes 1",
        },
        kinds=("peers", "calls", "stages", "ort_options"),
    ),
}


def checkpoint_of(name: str) -> Path:
    """The checkpoint of a model, made if it is missing."""
    if name == "shapes":
        return SHAPES_CHECKPOINT
    folder = MADE / name
    if not folder.exists():
        _run("-m", "benchmarks.common.make_checkpoint", folder, "--size", name)
    return folder


def bundle_of(name: str, precision: str) -> Path:
    """The bundle of a model, exported if it is missing."""
    if name == "shapes":
        return SHAPES_BUNDLE
    folder = MADE / precision / name
    if not folder.exists():
        _latentrt("export", checkpoint_of(name), folder, "--precision", precision)
        if precision == "fp32":
            _latentrt("build", folder, "--backend", "onnxruntime", "--device", "cpu")
    return folder


def bundle_with_ports(name: str, precision: str, ports: str) -> Path:
    """The same with ports."""
    folder = MADE / precision / ports.replace(",", "-") / name
    if not folder.exists():
        _latentrt("export", checkpoint_of(name), folder, "--precision", precision, "--ports", ports)
    return folder


def commands(model: Model, device: str, backends: list[str]) -> Iterator[tuple[str, list[Any]]]:
    """Kind of each benchmark of a model, and its arguments for Python."""
    gpu = device != "cpu"
    bundle = bundle_of(model.name, "fp16" if gpu and model.name != "shapes" else "fp32")
    size = ("--height", model.pixels, "--width", model.pixels)
    common = [bundle, "--backend", *backends, "--device", device, *size]
    turns = ("--repetitions", 12 if gpu else model.repetitions)
    steps, calls = (20, 20) if gpu else (model.steps, model.calls)
    for kind in ON_ALL_DEVICES if gpu else model.kinds:
        match kind:
            case "peers":
                models = ["--checkpoint", checkpoint_of(model.name), "--bundle", bundle, "--name", model.name]
                command = ["-m", "benchmarks.peers", *models, "--size", model.pixels, "--steps", steps, *turns]
            case "calls":
                models = ["--checkpoint", checkpoint_of(model.name), "--bundle", bundle, "--name", model.name]
                command = ["-m", "benchmarks.peers.calls", *models, "--size", model.pixels]
            case "stages":
                command = ["-m", "benchmarks.speed.stages", *common, "--steps", steps, "--calls", calls, *turns]
            case "latency":
                command = ["-m", "benchmarks.speed.latency", *common]
            case "ideas":
                command = ["-m", "benchmarks.speed.ideas", *common, "--calls", calls, *turns]
            case "ort_options":
                command = ["-m", "benchmarks.speed.ort_options", bundle]
                command += ["--size", model.pixels, "--steps", steps, *turns]
            case "ports":
                command = ["-m", "benchmarks.speed.ports", *common]
                command += ["--with-ports", *(bundle_with_ports(model.name, "fp32", ports) for ports in PORTS)]
            case "cold_start":
                command = ["-m", "benchmarks.speed.cold_start", "--bundle", bundle, "--device", device]
                command += [] if gpu else ["--saved"]
        if not gpu:
            command += shlex.split(model.options.get(kind, ""))
        yield kind, command


def device_name(card: dict[str, Any]) -> str:
    """Name of the results folder of a machine, such as "epyc-2-cores" or "nvidia-h100-80gb-hbm3"."""
    if card["gpus"]:
        return re.sub(r"[^a-z0-9]+", "-", card["gpus"][0]["name"].lower()).strip("-")
    words = re.sub(r"\(.*?\)|\b(AMD|Intel|CPU|Processor|Core|Xeon)\b|@.*|\d+-Core", "", card["cpu"]).split()
    words = words or re.sub(r"\(.*?\)", "", card["cpu"]).split()
    return "-".join([*words, str(card["cores"]), "cores"]).lower()


def measure(command: list[Any], device: str) -> dict[str, Any]:
    """Run a benchmark, whose output is shown, and return its JSON."""
    words = [sys.executable, "-u", *map(str, command)]
    variables = {**os.environ, "DEVICE": device}
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=variables)
    assert process.stdout is not None
    last = ""
    for line in process.stdout:
        if not line.startswith("{"):
            print(line, end="", flush=True)
        last = line
    if process.wait():
        raise RuntimeError(f"ended with status {process.returncode}")
    found: dict[str, Any] = json.loads(last)
    return found


def _latentrt(*command: Any) -> None:
    _run("-m", "latentrt.runtime.cli", *command)


def _run(*command: Any) -> None:
    subprocess.run([sys.executable, *map(str, command)], check=True, cwd=ROOT)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Run the benchmarks of a device and make its report.")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: cpu")
    parser.add_argument("--models", nargs="+", choices=tuple(MODELS), default=list(MODELS), help="default: all")
    parser.add_argument("--only", nargs="+", choices=ALL, default=list(ALL), help="kinds of benchmarks; default: all")
    parser.add_argument("--backend", nargs="+", help="default: those that are installed")
    parser.add_argument("--missing", action="store_true", help="skip benchmarks that have a JSON file already")
    arguments = parser.parse_args()
    folder = RESULTS / device_name(environment())
    folder.mkdir(parents=True, exist_ok=True)
    backends = arguments.backend or ["onnxruntime"]
    if arguments.backend is None and arguments.device == "cpu" and importlib.util.find_spec("openvino"):
        backends.append("openvino")
    failed = []
    for name in arguments.models:
        for kind, command in commands(MODELS[name], arguments.device, backends):
            file = folder / f"{kind}-{name}.json"
            if kind not in arguments.only or (file.exists() and arguments.missing):
                continue
            print(f"\n== {kind}, {name} ({time.strftime('%H:%M')})", flush=True)
            try:
                found = measure(command, arguments.device)
            except (RuntimeError, ValueError) as error:
                failed.append(f"{kind} of {name}: {error}")
                continue
            partial = file.with_suffix(".partial")
            partial.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
            partial.replace(file)
    print(f"\n{report.write(folder)}")
    if failed:
        raise SystemExit("not measured: " + "; ".join(failed))


if __name__ == "__main__":
    main()
