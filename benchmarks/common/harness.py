"""What the benchmarks share: interleaved repetitions, percentiles, a card of the machine, and a last line in JSON.

Knows clocks and tables; knows nothing of models. Every script measures what it compares side by side in one run, and
reports against its targets without failing: a figure is a fact about a machine.
"""

import argparse
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from datetime import date
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from latentrt.runtime import Bundle, Pipeline
from latentrt.runtime.scheduler.plan import Plan

PROMPT = "a photo of an astronaut riding a horse"

PACKAGES = (
    *("latentrt", "numpy", "onnxruntime", "onnxruntime-gpu", "onnx-ir", "openvino", "tensorrt", "tensorrt-rtx"),
    *("torch", "diffusers", "transformers", "optimum", "optimum-onnx", "openvino-genai", "stable-diffusion-cpp-python"),
)
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8")
PERCENTILES = {"min": 0, "p50": 50, "p90": 90, "p99": 99}


@dataclass(frozen=True, slots=True)
class Measurement:
    """Repetitions of one figure; `name` tells it apart from all others of its benchmark, such as "shapes: latency"."""

    name: str
    unit: str
    values: Sequence[float]
    more_is_better: bool = False

    @property
    def p50(self) -> float:
        """The median."""
        return float(np.percentile(self.values, 50))

    def record(self) -> dict[str, Any]:
        """What stands in the JSON: the values as well, so that they can be judged anew."""
        found = {name: float(np.percentile(self.values, q)) for name, q in PERCENTILES.items()}
        return {**asdict(self), "values": [float(value) for value in self.values], **found}


@dataclass(frozen=True, slots=True)
class Target:
    """A figure and the most that it should be."""

    name: str
    value: float
    at_most: float
    unit: str

    @property
    def met(self) -> bool:
        """Whether the figure keeps its limit."""
        return self.value <= self.at_most


def interleaved(
    cases: Mapping[str, Callable[[], object]], repetitions: int, *, warm_up: int = 1
) -> dict[str, list[float]]:
    """Seconds of each case, one for each repetition.

    The cases take turns, in reversed order every other time, so that a drift of the machine meets all of them alike.
    """
    names = list(cases)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    with tqdm(total=(warm_up + repetitions) * len(names), disable=None, leave=False) as bar:
        for turn in range(-warm_up, repetitions):
            for name in names if turn % 2 == 0 else reversed(names):
                bar.set_description_str(name)
                start = time.perf_counter()
                cases[name]()
                if turn >= 0:
                    seconds[name].append(time.perf_counter() - start)
                bar.update()
    return seconds


def median_ratio(over: Sequence[float], under: Sequence[float]) -> float:
    """Median of the ratios within each turn: what disturbs a whole turn cancels out."""
    return statistics.median(a / b for a, b in zip(over, under, strict=True))


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def environment() -> dict[str, Any]:
    """The machine and what is installed on it, as far as it decides the figures."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text(encoding="utf-8") if cpuinfo.exists() else ""
    model, clock = (re.search(rf"{name}\s*: (.*)", text) for name in ("model name", "cpu MHz"))
    flags = re.search(r"flags\s*: (.*)", text)
    return {
        "cpu": model[1] if model else platform.machine(),
        "mhz": round(float(clock[1])) if clock else None,
        "instructions": [name for name in INSTRUCTIONS if flags and name in flags[1].split()],
        "cores": cores(),
        "gpus": gpus(),
        "ram_gib": round(memory / 2**30, 1),
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "packages": dict(sorted((d.name, d.version) for d in distributions() if d.name in PACKAGES)),
        "threads": {name: os.environ[name] for name in THREADS if name in os.environ},
    }


def gpus() -> list[dict[str, str]]:
    """Name, driver, memory, clocks and power limit of each NVIDIA GPU, as nvidia-smi tells."""
    fields = ("name", "driver_version", "memory.total", "clocks.max.sm", "clocks.max.mem", "power.limit")
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
    child = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = child.stdout.splitlines() if child.returncode == 0 else []
    return [dict(zip(fields, map(str.strip, line.split(",")), strict=False)) for line in lines]


def add_pipeline_arguments(parser: argparse.ArgumentParser, *, repetitions: int) -> None:
    """BUNDLE, --backend, --device, --height, --width and --repetitions."""
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--backend", nargs="+", default=["onnxruntime"], help="default: onnxruntime")
    parser.add_argument("--device", default="cpu", help="default: cpu")
    parser.add_argument("--height", type=int, help="pixels; default: the bundle's")
    parser.add_argument("--width", type=int, help="pixels; default: the bundle's")
    parser.add_argument("--repetitions", type=int, default=repetitions, help=f"default: {repetitions}")


@contextmanager
def pipelines(arguments: argparse.Namespace) -> Iterator[dict[str, Pipeline]]:
    """The bundle on each backend that was asked for, by the backend's full name; height and width are filled in."""
    with ExitStack() as stack:
        pipes = [
            stack.enter_context(Pipeline.load(arguments.bundle, backend=backend, device=arguments.device))
            for backend in arguments.backend
        ]
        defaults = pipes[0].bundle.manifest.defaults
        arguments.height = arguments.height or defaults.height
        arguments.width = arguments.width or defaults.width
        yield {pipe.backend: pipe for pipe in pipes}


def ddim_plan(bundle: Bundle, calls: int) -> Plan:
    """DDIM with the checkpoint's betas and prediction type: one call a step, no draws."""
    config = bundle.read_json(bundle.manifest.scheduler) | {"_class_name": "DDIMScheduler", "clip_sample": False}
    return Plan.from_config(config, calls)


def unet_parameters(bundle: Bundle) -> int:
    """Number of parameters of a bundle's UNet, over the three graphs that it was cut into."""
    import onnx_ir as ir

    weights = {use.initializer for uses in bundle.manifest.weights.values() for use in uses}
    models = [ir.load(bundle.file(bundle.graph(name).file)) for name in ("time", "context", "denoise")]
    values = [v for model in models for name, v in model.graph.initializers.items() if name in weights]
    return sum(v.const_value.size for v in values if v.const_value is not None)


def show_environment() -> dict[str, Any]:
    """Print the card before anything is measured; a load near the number of cores makes every figure doubtful."""
    card = environment()
    packages = " ".join(f"{name} {found}" for name, found in card["packages"].items())
    print(f"{card['cpu']}, {card['cores']} cores, {card['ram_gib']} GiB, load {card['load']}; python {card['python']}")
    print(packages, flush=True)
    return card


def show_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table: the first column to the left, all others to the right."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    print()
    for row in (head, *rows):
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        print("  ".join(cells).rstrip())


def finish(
    benchmark: str,
    card: Mapping[str, Any],
    results: Mapping[str, Any],
    targets: Sequence[Target] = (),
    measurements: Sequence[Measurement] = (),
) -> None:
    """Print the targets, then everything as one line of JSON.

    `measurements` are what `compare.py` compares between runs; `results` is whatever else should be kept.
    """
    print()
    for target in targets:
        verdict = "met" if target.met else "missed"
        print(f"{target.name}: {target.value:.4g} {target.unit}, target at most {target.at_most:g}: {verdict}")
    found = {
        "benchmark": benchmark,
        "date": date.today().isoformat(),
        "environment": card,
        "results": results,
        "measurements": [measurement.record() for measurement in measurements],
        "targets": [{**asdict(target), "met": target.met} for target in targets],
    }
    print(json.dumps(json.loads(json.dumps(found), parse_float=lambda digits: float(f"{float(digits):.6g}"))))
