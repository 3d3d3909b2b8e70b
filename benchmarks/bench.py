"""Run the benchmarks of a device one after the other, and make its report: `make bench`, `make bench DEVICE=cuda`.

    python benchmarks/bench.py [--device cpu] [--models shapes medium sd15] [--only stages latency …] [--missing]

`shapes` is the model that ships along; `medium` (a UNet of 220 M parameters) and `sd15` get random weights, are
exported once under build/bench, and kept. Each benchmark is a process of its own, and its JSON goes to
benchmarks/results/DEVICE/ as soon as it is there; one that fails is reported and does not stop the others.
"""

import argparse
import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import report
from harness import environment

ROOT = Path(__file__).resolve().parents[1]
HERE = Path(__file__).resolve().parent
MADE = ROOT / "build" / "bench"


@dataclass(frozen=True, slots=True)
class Model:
    """What is measured with a model on a CPU, where large ones get few steps; `calls` of the loop, for one call's time.
    A GPU draws all of them with 20 steps."""

    name: str
    pixels: int
    steps: int
    calls: int
    repetitions: int
    peers: tuple[str, ...]
    latency: tuple[str, ...]
    kinds: tuple[str, ...]


ALL = ("peers", "stages", "latency", "ideas", "cold_start")
MODELS = {
    "shapes": Model("shapes", 128, 20, 5, 9, ("--cold-starts", "5"), ("--sizes", "64", "192"), ALL),
    "medium": Model(
        *("medium", 256, 4, 3, 5, ("--imports", "0")),
        ("--steps", "1", "4", "--batches", "1", "2", "4", "--few-steps", "2"),
        ALL[:4],
    ),
    "sd15": Model("sd15", 512, 2, 2, 2, ("--imports", "0", "--cold-starts", "1"), (), ALL[:2]),
}


def checkpoint_of(name: str) -> Path:
    """The checkpoint, which is made where there is none."""
    if name == "shapes":
        return ROOT / "tests" / "data" / "shapes"
    folder = MADE / name
    if not folder.exists():
        _run(HERE / "make_checkpoint.py", folder, "--size", name)
    return folder


def bundle_of(name: str, precision: str) -> Path:
    """The bundle, exported where there is none."""
    if name == "shapes":
        return ROOT / "engines" / "shapes"
    folder = MADE / precision / name
    if not folder.exists():
        _run("-m", "latentrt.runtime.cli", "export", checkpoint_of(name), folder, "--precision", precision)
    return folder


def commands(model: Model, device: str, backends: list[str]) -> Iterator[tuple[str, list[Any]]]:
    """Kind and command of each benchmark of a model."""
    gpu = device != "cpu"
    bundle = bundle_of(model.name, "fp16" if gpu and model.name != "shapes" else "fp32")
    size = ("--height", model.pixels, "--width", model.pixels)
    common = [bundle, "--backend", *backends, "--device", device, *size]
    steps = 20 if gpu else model.steps
    turns = ("--repetitions", 12 if gpu else model.repetitions)
    for kind in ALL if gpu else model.kinds:
        match kind:
            case "peers":
                peers = ["--checkpoint", checkpoint_of(model.name), "--bundle", bundle, "--name", model.name]
                yield kind, ["-m", "peers", *peers, "--size", model.pixels, "--steps", steps, *turns, *model.peers]
            case "stages":
                calls = 20 if gpu else model.calls
                yield kind, [HERE / "stages.py", *common, "--steps", steps, "--calls", calls, *turns]
            case "latency":
                yield kind, [HERE / "latency.py", *common, *(() if gpu else model.latency)]
            case "ideas":
                yield kind, [HERE / "ideas.py", *common, "--calls", 20 if gpu else 2 * model.calls]
            case "cold_start":
                yield kind, [HERE / "cold_start.py", "--bundle", bundle, "--device", device]


def device_name(card: dict[str, Any]) -> str:
    """Of the folder of a machine's results, such as "epyc-2-cores" or "nvidia-h100-80gb-hbm3"."""
    if card["gpus"]:
        return re.sub(r"[^a-z0-9]+", "-", card["gpus"][0]["name"].lower()).strip("-")
    words = re.sub(r"\(.*?\)|\b(AMD|Intel|CPU|Processor|Core|Xeon)\b|@.*|\d+-Core", "", card["cpu"]).split()
    return "-".join([*words, str(card["cores"]), "cores"]).lower()


def measure(command: list[Any], device: str) -> dict[str, Any]:
    """Run a benchmark, whose output goes on to the terminal; returns its JSON."""
    variables = {**os.environ, "DEVICE": device, "PYTHONPATH": f"{HERE}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    process = subprocess.Popen(
        [sys.executable, "-u", *map(str, command)], stdout=subprocess.PIPE, text=True, cwd=ROOT, env=variables
    )
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


def _run(*command: Any) -> None:
    subprocess.run([sys.executable, *map(str, command)], check=True, cwd=ROOT)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Run the benchmarks of a device and make its report.")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: cpu")
    parser.add_argument("--models", nargs="+", choices=tuple(MODELS), default=list(MODELS), help="default: all")
    parser.add_argument("--only", nargs="+", choices=ALL, default=list(ALL), help="kinds of benchmarks; default: all")
    parser.add_argument("--backend", nargs="+", help="default: those that are installed")
    parser.add_argument("--missing", action="store_true", help="only what has no JSON yet")
    arguments = parser.parse_args()
    folder = HERE / "results" / device_name(environment())
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
