"""What all benchmarks share: interleaved timing, tables, the description of the machine, and the JSON line at the end.

Whatever is compared is measured side by side in one run. A missed target is printed and does not fail the run, as a
figure describes one machine.
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

from latentrt.runtime import Bundle, Pipeline, Plan

PROMPT = "a photo of an astronaut riding a horse"

PACKAGES = (
    *("latentrt", "numpy", "onnxruntime", "onnxruntime-gpu", "onnx-ir", "openvino", "tensorrt", "tensorrt-rtx"),
    *("torch", "diffusers", "transformers", "optimum", "optimum-onnx", "openvino-genai", "stable-diffusion-cpp-python"),
)
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
INSTRUCTIONS = ("avx2", "avx_vnni", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8")
PERCENTILES = {"min": 0, "p50": 50, "p90": 90, "p99": 99}


@dataclass(frozen=True, slots=True)
class Measurement:
    """The repetitions of one figure. `name` is unique within its benchmark, such as "shapes: latency"."""

    name: str
    unit: str
    values: Sequence[float]
    more_is_better: bool = False

    @property
    def p50(self) -> float:
        """The median."""
        return float(np.percentile(self.values, 50))

    def record(self) -> dict[str, Any]:
        """The JSON record: percentiles, and all values, so that two runs can be compared later."""
        found = {name: float(np.percentile(self.values, q)) for name, q in PERCENTILES.items()}
        return {**asdict(self), "values": [float(value) for value in self.values], **found}


@dataclass(frozen=True, slots=True)
class Target:
    """A figure and its upper limit."""

    name: str
    value: float
    at_most: float
    unit: str

    @property
    def met(self) -> bool:
        """Whether the figure is within its limit."""
        return self.value <= self.at_most


def interleaved(
    cases: Mapping[str, Callable[[], object]], repetitions: int, *, warm_up: int = 1
) -> dict[str, list[float]]:
    """Seconds of each case, one value per repetition; the first `warm_up` turns are not counted.

    The cases take turns, in reversed order every other turn, so that a drift of the machine affects all of them alike.
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
    """Median of the ratios within each turn: a disturbance that lasts a whole turn cancels out."""
    return statistics.median(a / b for a, b in zip(over, under, strict=True))


def cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


def environment() -> dict[str, Any]:
    """The properties of the machine, and the installed packages, that affect the figures."""
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
    """Name, driver, memory, clocks and power limit of each NVIDIA GPU, as nvidia-smi reports them."""
    fields = ("name", "driver_version", "memory.total", "clocks.max.sm", "clocks.max.mem", "power.limit")
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
    child = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = child.stdout.splitlines() if child.returncode == 0 else []
    return [dict(zip(fields, map(str.strip, line.split(",")), strict=False)) for line in lines]


def add_pipeline_arguments(parser: argparse.ArgumentParser, *, repetitions: int) -> None:
    """Add BUNDLE, --backend, --device, --height, --width and --repetitions."""
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--backend", nargs="+", default=["onnxruntime"], help="default: onnxruntime")
    parser.add_argument("--device", default="cpu", help="default: cpu")
    parser.add_argument("--height", type=int, help="pixels; default: the bundle's")
    parser.add_argument("--width", type=int, help="pixels; default: the bundle's")
    parser.add_argument("--repetitions", type=int, default=repetitions, help=f"default: {repetitions}")


@contextmanager
def pipelines(arguments: argparse.Namespace) -> Iterator[dict[str, Pipeline]]:
    """Load the bundle on each requested backend; keys are the backends' full names.

    Sets `arguments.height` and `arguments.width` to the bundle's defaults where they are None.
    """
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
    """DDIM with the checkpoint's betas and prediction type: one UNet call per step, no noise between steps."""
    config = bundle.read_json(bundle.manifest.scheduler) | {"_class_name": "DDIMScheduler", "clip_sample": False}
    return Plan.from_config(config, calls)


def unet_parameters(bundle: Bundle) -> int:
    """Number of parameters of a bundle's UNet, summed over the three graphs that it was cut into."""
    import onnx_ir as ir

    weights = {use.initializer for uses in bundle.manifest.weights.values() for use in uses}
    models = [ir.load(bundle.file(bundle.graph(name).file)) for name in ("time", "context", "denoise")]
    values = [v for model in models for name, v in model.graph.initializers.items() if name in weights]
    return sum(v.const_value.size for v in values if v.const_value is not None)


def show_environment() -> dict[str, Any]:
    """Print and return `environment()`, before anything is measured.

    With a load near the number of cores, no figure can be trusted.
    """
    card = environment()
    packages = " ".join(f"{name} {found}" for name, found in card["packages"].items())
    print(f"{card['cpu']}, {card['cores']} cores, {card['ram_gib']} GiB, load {card['load']}; python {card['python']}")
    print(packages, flush=True)
    return card


def show_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table: first column left-aligned, all others right-aligned."""
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

    Args:
        benchmark: the name of the benchmark.
        card: from `show_environment`.
        results: whatever else should be kept.
        targets: figures with a limit.
        measurements: what `benchmarks.reports.compare` compares between runs.
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
