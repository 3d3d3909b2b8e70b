"""Time to the first picture.

    python -m benchmarks.speed.cold_start [--bundle engines/NAME] [--device cpu] [--steps 20] [--imports 15]
        [--pictures 3]

Measures, each in new processes:
- `import latentrt.runtime` and `import numpy`, in turns; the difference is what latentrt adds (target: 50 ms),
- `latentrt generate`, from the start of the process to its end (target: 3 s for 20 steps of the embedded model),
- the first and the second picture of a process, after `Pipeline.load`.

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
from functools import partial
from pathlib import Path

from benchmarks.common.harness import Measurement, Target, finish, interleaved, show_environment, show_table
from benchmarks.common.paths import ROOT
from latentrt.runtime import Pipeline
from latentrt.runtime.pipeline import embedded_bundle

PROMPT = "a large red star on a blue background"
IMPORT_TARGET, GENERATE_TARGET = 50.0, 3.0


def pictures_in_one_process(bundle: Path, steps: int, device: str) -> dict[str, float]:
    """Milliseconds of `Pipeline.load`, the first and the second picture; runs in a child process."""
    marks = [time.perf_counter()]
    with Pipeline.load(bundle, backend="onnxruntime", device=device) as pipe:
        marks.append(time.perf_counter())
        for _ in range(2):
            pipe(PROMPT, num_inference_steps=steps, seed=0)
            marks.append(time.perf_counter())
    names = ("load", "first picture", "second picture")
    return {name: 1000 * (end - start) for name, start, end in zip(names, marks[:-1], marks[1:], strict=True)}


def measure(
    bundle: Path, steps: int, imports: int, pictures: int, *, device: str, folder: Path
) -> dict[str, list[float]]:
    """All repetitions by name, in milliseconds."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = str(folder / "bytecode")

    def run(*command: str | Path) -> str:
        child = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        if child.returncode:
            raise SystemExit(f"{command[0]} ended with status {child.returncode}:\n{child.stderr}")
        return child.stdout

    names = ("import numpy", "import latentrt.runtime")
    seconds = interleaved({name: partial(run, sys.executable, "-c", name) for name in names}, imports)
    result = {name: [1000 * value for value in values] for name, values in seconds.items()}
    result["import difference"] = [1000 * (longer - shorter) for shorter, longer in zip(*seconds.values(), strict=True)]

    latentrt, picture = Path(sys.executable).with_name("latentrt"), folder / "picture.png"
    generate = (latentrt, "generate", PROMPT, "--bundle", bundle, "--steps", str(steps), "--seed", "0", "-o", picture)
    options = ("--bundle", bundle, "--steps", str(steps), "--device", device)
    one_process = (sys.executable, "-m", "benchmarks.speed.cold_start", *options, "--one-process")
    inside: list[dict[str, float]] = []
    cases = {
        "latentrt generate": lambda: run(*generate, "--backend", "onnxruntime", "--device", device),
        "one process": lambda: inside.append(json.loads(run(*one_process))),
    }
    result["latentrt generate"] = [1000 * value for value in interleaved(cases, pictures)["latentrt generate"]]
    # The first entry is the warm-up.
    return result | {name: [entry[name] for entry in inside[1:]] for name in inside[0]}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Measure imports, first and second pictures.")
    parser.add_argument("--bundle", type=Path, help="default: the embedded model")
    parser.add_argument("--steps", type=int, default=20, help="default: 20")
    parser.add_argument("--imports", type=int, default=15, help="repetitions of the imports; default: 15")
    parser.add_argument("--pictures", type=int, default=3, help="repetitions of the pictures; default: 3")
    parser.add_argument("--device", default="cpu", help="default: cpu")
    parser.add_argument("--one-process", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    bundle = (arguments.bundle or embedded_bundle()).resolve()
    if arguments.one_process:
        print(json.dumps(pictures_in_one_process(bundle, arguments.steps, arguments.device)))
        return
    card = show_environment()
    print(f"targets: import difference {IMPORT_TARGET:g} ms, latentrt generate {GENERATE_TARGET:g} s", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(
            bundle,
            arguments.steps,
            arguments.imports,
            arguments.pictures,
            device=arguments.device,
            folder=Path(folder),
        )
    measurements = [Measurement(f"{bundle.name}: {name}", "ms", values) for name, values in found.items()]
    medians = {name: statistics.median(values) for name, values in found.items()}
    show_table(("", "ms"), [(name, f"{value:,.0f}") for name, value in medians.items()])
    targets = [
        Target("import latentrt.runtime over import numpy", medians["import difference"], IMPORT_TARGET, "ms"),
        Target("latentrt generate", medians["latentrt generate"] / 1000, GENERATE_TARGET, "s"),
    ]
    finish("cold_start", card, {"bundle": bundle.name, "steps": arguments.steps}, targets, measurements)


if __name__ == "__main__":
    main()
