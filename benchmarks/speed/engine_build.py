"""The cost of building engines: time, peak resident memory and size of each graph's engine.

    python -m benchmarks.speed.engine_build BUNDLE [--backend tensorrt_rtx] [--height 512] [--width 512] [--batch 1]
        [--compute-capability 8.9 ...] [--graph denoise ...] [--quantize fp8 ...]

Each graph is built by a `latentrt build` of its own into a new temporary folder. TensorRT for RTX needs no GPU.
`benchmarks.common.make_checkpoint` makes checkpoints of the real sizes. With `--quantize`, `denoise` is also built
quantized, with the made-up ranges of `benchmarks.common.made_up_ranges`. The last line is JSON.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.common.harness import finish, show_environment, show_table
from benchmarks.common.made_up_ranges import with_made_up_ranges
from latentrt.export.build.inspection import inspect_engines
from latentrt.runtime.bundle import Bundle, EngineList, sizes_text
from latentrt.runtime.bundle.manifest import QUANTIZED

Figures = dict[str, float | str]


def build(bundle: Bundle, folder: Path, graph: str, options: list[str]) -> Figures:
    """Build one graph's engine and return its figures; the memory is that of its largest process."""
    command = [sys.executable, "-m", "latentrt.runtime.cli", "build", str(bundle.path), "--engines", str(folder)]
    start = time.perf_counter()
    process = subprocess.Popen([*command, "--graph", graph, *options], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"building {graph} ended with status {os.waitstatus_to_exitcode(status)}")
    seconds = time.perf_counter() - start
    found = EngineList.of_bundle(bundle, folder)
    record = next(record for record in found.engines if record.graph == graph)
    weights = bundle.manifest.files.get(f"{bundle.graph(graph).file}.data")
    return {
        "sizes": sizes_text(record),
        "seconds": seconds,
        "processor_seconds": usage.ru_utime + usage.ru_stime,
        "peak_bytes": usage.ru_maxrss * 1024,
        "engine_bytes": found.files[record.file].size,
        "weight_bytes": weights.size if weights else 0,
        "kernels": str(next(iter(inspect_engines(bundle.path, engines=folder, graphs=[graph])))).partition(": ")[2],
    }


def builds(
    bundle: Bundle, graphs: Sequence[str], quantized: Sequence[str], options: list[str]
) -> Iterator[tuple[str, Figures]]:
    """Name and figures of the engine of each graph, and then of `denoise` in each of these quantizations."""
    for graph in graphs:
        with tempfile.TemporaryDirectory() as folder:
            yield graph, build(bundle, Path(folder), graph, options)
    for to in quantized:
        with tempfile.TemporaryDirectory() as folder:
            with_made_up_ranges(bundle.path, Path(folder) / "bundle", to)
            made = Bundle.open(Path(folder) / "bundle")
            yield f"denoise {to}", build(made, Path(folder) / "engines", "denoise", options)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Measure the cost of building engines.")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--backend", default="tensorrt_rtx", help="default: tensorrt_rtx")
    parser.add_argument("--graph", action="append", default=[], help="repeatable; default: all")
    parser.add_argument(
        "--compute-capability", action="append", default=[], metavar="X.Y", help="repeatable; default: this GPU's"
    )
    parser.add_argument(
        "--quantize", action="append", default=[], choices=QUANTIZED, help="repeatable: also build denoise quantized"
    )
    for name in ("height", "width", "batch", "groups"):
        parser.add_argument(f"--{name}", metavar="SIZE", help="as for `latentrt build`")
    arguments = parser.parse_args()
    options = ["--backend", arguments.backend]
    for name in ("height", "width", "batch", "groups"):
        if getattr(arguments, name):
            options += [f"--{name}", getattr(arguments, name)]
    for capability in arguments.compute_capability:
        options += ["--compute-capability", capability]
    card = show_environment()
    bundle = Bundle.open(arguments.bundle)
    figures = dict(builds(bundle, arguments.graph or [*bundle.manifest.graphs], arguments.quantize, options))
    rows = [
        (
            f"{name} {f['sizes']}",
            f"{f['seconds']:.1f}",
            f"{f['processor_seconds']:.1f}",
            f"{f['peak_bytes'] / 1e9:.2f}",
            f"{f['engine_bytes'] / 1e6:,.1f}",
            f"{f['weight_bytes'] / 1e6:,.1f}",
        )
        for name, f in figures.items()
    ]
    show_table(("engine", "s", "processor s", "GB peak", "MB", "MB of weights"), rows)
    results = {"bundle": bundle.path.name, "precision": bundle.manifest.recipe.precision, "options": options}
    finish("engine_build", card, results | {"graphs": figures}, [])


if __name__ == "__main__":
    main()
