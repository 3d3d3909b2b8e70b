"""The cost of building engines: time, peak resident memory and size of each graph's engine.

    python -m benchmarks.speed.engine_build BUNDLE [--backend tensorrt_rtx] [--height 512] [--width 512] [--batch 1]
        [--compute-capability 8.9 ...] [--graph denoise ...]

Each graph is built by a `latentrt build` of its own into a new temporary folder. TensorRT for RTX needs no GPU.
`benchmarks.common.make_checkpoint` makes checkpoints of the real sizes. The last line is JSON.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.common.harness import finish, show_environment, show_table
from latentrt.runtime.bundle import Bundle, EngineList, sizes_text


def build(bundle: Bundle, folder: Path, graph: str, options: list[str]) -> dict[str, float | str]:
    """Build one graph's engine and return its figures; the memory is that of the whole process."""
    command = [sys.executable, "-m", "latentrt.runtime.cli", "build", str(bundle.path), "--engines", str(folder)]
    start = time.perf_counter()
    process = subprocess.Popen([*command, "--graph", graph, *options], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"building {graph} ended with status {os.waitstatus_to_exitcode(status)}")
    found = EngineList.of_bundle(bundle, folder)
    record = next(record for record in found.engines if record.graph == graph)
    return {
        "sizes": sizes_text(record),
        "seconds": time.perf_counter() - start,
        "processor_seconds": usage.ru_utime + usage.ru_stime,
        "peak_bytes": usage.ru_maxrss * 1024,
        "engine_bytes": found.files[record.file].size,
    }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Measure the cost of building engines.")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--backend", default="tensorrt_rtx", help="default: tensorrt_rtx")
    parser.add_argument("--graph", action="append", default=[], help="repeatable; default: all")
    parser.add_argument(
        "--compute-capability", action="append", default=[], metavar="X.Y", help="repeatable; default: this GPU's"
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
    figures = {}
    rows = []
    for graph in arguments.graph or bundle.manifest.graphs:
        with tempfile.TemporaryDirectory() as folder:
            figures[graph] = f = build(bundle, Path(folder), graph, options)
        onnx = bundle.manifest.graphs[graph].file
        weights = bundle.manifest.files.get(f"{onnx}.data")
        rows.append(
            (
                f"{graph} {f['sizes']}",
                f"{f['seconds']:.1f}",
                f"{f['processor_seconds']:.1f}",
                f"{f['peak_bytes'] / 1e9:.2f}",
                f"{f['engine_bytes'] / 1e6:,.1f}",
                f"{weights.size / 1e6:,.1f}" if weights else "-",
            )
        )
    show_table(("engine", "s", "processor s", "GB peak", "MB", "MB of weights"), rows)
    results = {"bundle": bundle.path.name, "precision": bundle.manifest.recipe.precision, "options": options}
    finish("engine_build", card, results | {"graphs": figures}, [])


if __name__ == "__main__":
    main()
