"""Time to the first picture.

    python -m benchmarks.speed.cold_start [--bundle engines/NAME] [--device cpu] [--steps 20] [--imports 15]
        [--pictures 3] [--saved]

Measures, each in new processes:
- `import latentrt.runtime` and `import numpy`, in turns; the difference is what latentrt adds (target: 50 ms),
- `latentrt generate`, from the start of the process to its end (target: 3 s for 20 steps of the embedded model),
- the first and the second picture of a process, after `Pipeline.load`,
- with `--saved`, both once more with graphs that were built for this CPU: rewritten, and also saved. These take turns.

Files are in the page cache, and bytecode is compiled by an uncounted first run into a folder of its own, as for an
installed package. The last line is JSON.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

from benchmarks.common.harness import Measurement, Target, finish, interleaved, show_environment, show_table
from benchmarks.common.paths import ROOT
from latentrt.export.build.ort_graphs import build_ort_graphs
from latentrt.runtime import ExportError, Pipeline
from latentrt.runtime.pipeline import embedded_bundle

PROMPT = "a large red star on a blue background"
IMPORT_TARGET, GENERATE_TARGET = 50.0, 3.0


def pictures_in_one_process(bundle: Path, steps: int, device: str, engines: Path | None) -> dict[str, float]:
    """Milliseconds of `Pipeline.load`, the first and the second picture; runs in a child process."""
    marks = [time.perf_counter()]
    with Pipeline.load(bundle, backend="onnxruntime", device=device, engines=engines) as pipe:
        marks.append(time.perf_counter())
        for _ in range(2):
            pipe(PROMPT, num_inference_steps=steps, seed=0)
            marks.append(time.perf_counter())
    names = ("load", "first picture", "second picture")
    return {name: 1000 * (end - start) for name, start, end in zip(names, marks[:-1], marks[1:], strict=True)}


class Measured:
    """Runs commands in processes of their own, in `folder`, with bytecode that the first run compiles."""

    def __init__(self, bundle: Path, device: str, folder: Path) -> None:
        self._bundle, self._device, self._folder = bundle, device, folder
        self._environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        self._environment["PYTHONPYCACHEPREFIX"] = str(folder / "bytecode")

    def imports(self, repetitions: int) -> dict[str, list[float]]:
        """Milliseconds of imports by name."""
        names = ("import numpy", "import latentrt.runtime")
        seconds = interleaved({name: partial(self._run, sys.executable, "-c", name) for name in names}, repetitions)
        result = {name: [1000 * value for value in values] for name, values in seconds.items()}
        shorter, longer = seconds.values()
        return result | {"import difference": [1000 * (b - a) for a, b in zip(shorter, longer, strict=True)]}

    def pictures(self, steps: int, repetitions: int, engines: Mapping[str, Path | None]) -> dict[str, list[float]]:
        """Milliseconds of pictures by name; `engines` are names of cases and their folders of built graphs."""
        latentrt, picture = Path(sys.executable).with_name("latentrt"), self._folder / "picture.png"
        common = ("--bundle", self._bundle, "--steps", str(steps), "--device", self._device)
        generate = (latentrt, "generate", PROMPT, *common, "--seed", "0", "-o", picture, "--backend", "onnxruntime")
        one_process = (sys.executable, "-m", "benchmarks.speed.cold_start", *common, "--one-process")
        cases: dict[str, Callable[[], object]] = {}
        inside: dict[str, list[dict[str, float]]] = {name: [] for name in engines}
        for name, folder in engines.items():
            more = () if folder is None else ("--engines", folder)
            cases[f"{name}latentrt generate"] = partial(self._run, *generate, *more)
            cases[f"{name}one process"] = lambda name=name, more=more: inside[name].append(
                json.loads(self._run(*one_process, *more))
            )
        seconds = interleaved(cases, repetitions)
        result: dict[str, list[float]] = {}
        for name, entries in inside.items():
            result[f"{name}latentrt generate"] = [1000 * value for value in seconds[f"{name}latentrt generate"]]
            # The first entry is the warm-up.
            result |= {f"{name}{figure}": [entry[figure] for entry in entries[1:]] for figure in entries[0]}
        return result

    def _run(self, *command: str | Path) -> str:
        child = subprocess.run(command, cwd=ROOT, env=self._environment, capture_output=True, text=True, check=False)
        if child.returncode:
            raise SystemExit(f"{command[0]} ended with status {child.returncode}:\n{child.stderr}")
        return child.stdout


def built_graphs(bundle: Path, folder: Path) -> dict[str, Path]:
    """Folders of graphs that are built for this CPU, with and without saved ones, by the name of the case."""
    folders = {"rewritten: ": folder / "rewritten", "saved: ": folder / "saved"}
    for name, engines in folders.items():
        with suppress(ExportError):  # nothing to rewrite: the exported graphs run
            list(build_ort_graphs(bundle, devices=["cpu"], engines=engines, saved=name == "saved: "))
    return folders


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Measure imports, first and second pictures.")
    parser.add_argument("--bundle", type=Path, help="default: the embedded model")
    parser.add_argument("--steps", type=int, default=20, help="default: 20")
    parser.add_argument("--imports", type=int, default=15, help="repetitions of the imports; default: 15")
    parser.add_argument("--pictures", type=int, default=3, help="repetitions of the pictures; default: 3")
    parser.add_argument("--device", default="cpu", help="default: cpu")
    parser.add_argument("--saved", action="store_true", help="also with built graphs, for the device cpu")
    parser.add_argument("--engines", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--one-process", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    bundle = (arguments.bundle or embedded_bundle()).resolve()
    if arguments.one_process:
        print(json.dumps(pictures_in_one_process(bundle, arguments.steps, arguments.device, arguments.engines)))
        return
    card = show_environment()
    print(f"targets: import difference {IMPORT_TARGET:g} ms, latentrt generate {GENERATE_TARGET:g} s", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        measured = Measured(bundle, arguments.device, Path(folder))
        engines: dict[str, Path | None] = {"": None}
        engines |= built_graphs(bundle, Path(folder)) if arguments.saved else {}
        found = measured.imports(arguments.imports) | measured.pictures(arguments.steps, arguments.pictures, engines)
    measurements = [Measurement(f"{bundle.name}: {name}", "ms", values) for name, values in found.items()]
    medians = {name: statistics.median(values) for name, values in found.items()}
    show_table(("", "ms"), [(name, f"{value:,.0f}") for name, value in medians.items()])
    targets = [Target("import latentrt.runtime over import numpy", medians["import difference"], IMPORT_TARGET, "ms")]
    if bundle == embedded_bundle().resolve():
        targets.append(Target("latentrt generate", medians["latentrt generate"] / 1000, GENERATE_TARGET, "s"))
    finish("cold_start", card, {"bundle": bundle.name, "steps": arguments.steps}, targets, measurements)


if __name__ == "__main__":
    main()
