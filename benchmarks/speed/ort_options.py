"""The effect of each option of ONNX Runtime's sessions on the CPU: latency, processor time, load time, memory.

    python -m benchmarks.speed.ort_options [BUNDLE] [--steps 4] [--size 128] [--repetitions 5] [--processes 2]
        [--option NAME]

Each option is set alone, on all sessions of a pipeline, and compared with latentrt's defaults. The two pipelines take
turns in one process for latency and processor time, and in new processes for load time and peak memory. With a ratio
below 1 the option pays. `result` says whether the latents are bit-identical. The row `exported graphs` is not an option
of a session: it ignores the graphs of `latentrt build --backend onnxruntime`. The last line is JSON.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from benchmarks.common.harness import Measurement, finish, interleaved, median_ratio, show_environment, show_table
from benchmarks.common.memory import peak_bytes
from benchmarks.common.paths import ROOT
from latentrt.runtime import Bundle, Pipeline
from latentrt.runtime.goldens import relative_error
from latentrt.runtime.pipeline import embedded_bundle

Change = Callable[[Any], None]
NO_ENGINES = Path("no folder")


def entry(name: str, value: str) -> Change:
    """Set a key of the session's configuration."""
    return lambda options: options.add_session_config_entry(name, value)


def attribute(name: str, value: object) -> Change:
    """Set an attribute of `SessionOptions`."""
    return lambda options: setattr(options, name, value)


def all_of(*changes: Change) -> Change:
    """Several changes as one."""

    def change(options: Any) -> None:
        for one in changes:
            one(options)

    return change


OPTIONS: dict[str, Change] = {
    "nothing": lambda _: None,  # the difference between two equal pipelines
    "no spinning": entry("session.intra_op.allow_spinning", "0"),
    "spinning between runs": entry("session.force_spinning_stop", "0"),
    "an arena for each session": entry("session.use_env_allocators", "0"),
    "memory pattern": attribute("enable_mem_pattern", True),
    "ONNX Runtime's memory": all_of(entry("session.use_env_allocators", "0"), attribute("enable_mem_pattern", True)),
    "no arena": all_of(entry("session.use_env_allocators", "0"), attribute("enable_cpu_mem_arena", False)),
    "no prepacking": entry("session.disable_prepacking", "1"),
    "denormals are zero": entry("session.set_denormal_as_zero", "1"),
    "no layout changes": attribute("graph_optimization_level", onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED),
    "exported graphs": lambda _: None,
    "least optimization": attribute("graph_optimization_level", onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC),
}


@contextmanager
def sessions_with(change: Change) -> Iterator[None]:
    """Apply an option to sessions that are made in this block."""
    original = onnxruntime.InferenceSession

    def session(path: Path, options: Any, **more: Any) -> Any:
        change(options)  # after latentrt has set its options
        return original(path, options, **more)

    onnxruntime.InferenceSession = session
    try:
        yield
    finally:
        onnxruntime.InferenceSession = original


def drawn(bundle: Path, option: str, call: dict[str, Any]) -> tuple[Pipeline, np.ndarray]:
    """A pipeline with the option, all of its sessions loaded, and the latents that it draws."""
    with sessions_with(OPTIONS[option]):
        engines = NO_ENGINES if option == "exported graphs" else None
        pipe = Pipeline.load(bundle, backend="onnxruntime", device="cpu", engines=engines)
        return pipe, pipe("a red star", seed=1, **call).latents


def one_process(bundle: Path, option: str, call: dict[str, Any]) -> dict[str, float]:
    """Milliseconds to the end of the first picture, and peak memory in MiB; runs in a child process."""
    start = time.perf_counter()
    drawn(bundle, option, call)[0].close()
    took = 1000 * (time.perf_counter() - start)
    return {"first picture": took, "memory": peak_bytes() / 2**20}


def saved_graphs(bundle: Path, repetitions: int) -> tuple[list[float], list[float], float]:
    """Seconds to make a session of `denoise` from a saved optimized graph and from the bundle; MiB of the former."""
    opened = Bundle.open(bundle)
    source = opened.file(opened.graph("denoise").file)
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.optimized_model_filepath = str(Path(folder) / "denoise.onnx")
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "denoise.data")
        onnxruntime.InferenceSession(source, options)
        size = sum(file.stat().st_size for file in Path(folder).iterdir()) / 2**20
        plain = onnxruntime.SessionOptions()
        plain.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        cases = {
            "bundle": partial(onnxruntime.InferenceSession, source),
            "saved": partial(onnxruntime.InferenceSession, Path(folder) / "denoise.onnx", plain),
        }
        seconds = interleaved(cases, repetitions)
    return seconds["saved"], seconds["bundle"], size


def compare(
    bundle: Path, option: str, call: dict[str, Any], repetitions: int, processes: int
) -> tuple[list[Measurement], list[str]]:
    """Measure with and without one option: the measurements, and a row of the table."""
    (with_it, changed), (without, same) = (drawn(bundle, name, call) for name in (option, "nothing"))
    processor: dict[str, list[float]] = {"with": [], "without": []}

    def draw(name: str, pipe: Pipeline) -> None:
        start = time.process_time()
        pipe("a red star", seed=1, **call)
        processor[name].append(time.process_time() - start)

    with with_it, without:
        cases = {"with": partial(draw, "with", with_it), "without": partial(draw, "without", without)}
        latency = interleaved(cases, repetitions)
    processor = {name: values[1:] for name, values in processor.items()}  # the first value is the warm-up

    options = [bundle, "--call", json.dumps(call), "--one-process"]
    command = [sys.executable, "-m", "benchmarks.speed.ort_options", *options]
    found: dict[str, list[dict[str, float]]] = {"with": [], "without": []}

    def child(name: str, given: str) -> None:
        text = subprocess.run([*command, given], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        found[name].append(json.loads(text))

    interleaved(
        {"with": partial(child, "with", option), "without": partial(child, "without", "nothing")}, processes, warm_up=0
    )
    figures = {"latency": latency, "processor": processor}
    for figure in ("first picture", "memory"):
        figures[figure] = {name: [turn[figure] for turn in turns] for name, turns in found.items()}
    ratios = {figure: median_ratio(both["with"], both["without"]) for figure, both in figures.items()}
    units = {"latency": "s", "processor": "s", "first picture": "ms", "memory": "MiB"}
    measurements = [
        Measurement(f"{bundle.name}: {option}: {figure} {name}", units[figure], values)
        for figure, both in figures.items()
        for name, values in both.items()
    ]
    row = [option]
    for figure, both in figures.items():
        row += [f"{np.median(both['with']):,.2f}", f"{np.median(both['without']):,.2f}", f"{ratios[figure]:.2f}"]
    error = relative_error(changed, same)
    return measurements, [*row, "equal" if np.array_equal(changed, same) else f"{error:.0e}"]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Measure options of ONNX Runtime's sessions on the CPU.")
    parser.add_argument("bundle", type=Path, nargs="?", default=embedded_bundle(), help="default: the embedded model")
    parser.add_argument("--steps", type=int, default=4, help="default: 4")
    parser.add_argument("--size", type=int, default=128, help="pixels; default: 128")
    parser.add_argument("--repetitions", type=int, default=5, help="default: 5")
    parser.add_argument("--processes", type=int, default=2, help="pairs, for load time and memory; default: 2")
    parser.add_argument("--option", action="append", choices=tuple(OPTIONS), help="repeatable; default: all")
    parser.add_argument("--one-process", choices=tuple(OPTIONS), help=argparse.SUPPRESS)
    parser.add_argument("--call", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    onnxruntime.set_default_logger_severity(3)  # it warns about each key that is set twice
    bundle = arguments.bundle.absolute()
    if arguments.one_process:
        print(json.dumps(one_process(bundle, arguments.one_process, arguments.call)))
        return
    card = show_environment()
    call = {"num_inference_steps": arguments.steps, "height": arguments.size, "width": arguments.size}
    call["output_type"] = "np"
    measurements: list[Measurement] = []
    rows = []
    built = any(record.device == "cpu" for record in Bundle.open(bundle).manifest.engines)
    for option in arguments.option or [name for name in OPTIONS if built or name != "exported graphs"]:
        measured, row = compare(bundle, option, call, arguments.repetitions, arguments.processes)
        print("  ".join(row), flush=True)
        measurements += measured
        rows.append(row)
    head = ["option"]
    for figure in ("seconds", "processor s", "first picture ms", "memory MiB"):
        head += [f"{figure} with", "without", "ratio"]
    show_table([*head, "result"], rows)
    saved, plain, size = saved_graphs(bundle, arguments.repetitions)
    print(
        f"\nsession of denoise from a graph saved optimized ({size:,.0f} MiB): {median_ratio(saved, plain):.2f} times"
    )
    measurements.append(Measurement(f"{bundle.name}: saved graph: session with", "s", saved))
    measurements.append(Measurement(f"{bundle.name}: saved graph: session without", "s", plain))
    finish("ort_options", card, {"bundle": bundle.name, **call}, measurements=measurements)


if __name__ == "__main__":
    main()
