"""The C++ library beside Python, on one bundle and one engine.

    python -m benchmarks.speed.native [--bundle engines/NAME] [--steps 20] [--pairs 20] [--processes 5]

Needs `make native`. Both run ONNX Runtime of this Python environment, which is of one version in both, on the CPU:
- latency: pictures by one long process each, in turns (target: at most 1.02 of Python's),
- the first picture: `latentrt-draw` beside `latentrt generate`, from the start of the process to its end,
- peak resident memory of those processes,
- size of the library, stripped (target: 3 MB).

The targets for first picture and memory are those of the embedded model, 0.6 and 0.8 of Python's; of a full-size model
both shall not be above Python's. The last line is JSON.
"""

import argparse
import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import onnxruntime

from benchmarks.common.harness import (
    Measurement,
    Target,
    finish,
    interleaved,
    median_ratio,
    show_environment,
    show_table,
)
from benchmarks.common.memory import peak_bytes
from benchmarks.common.paths import ROOT, onnxruntime_library
from latentrt.runtime import Bundle, Pipeline
from latentrt.runtime.pipeline import embedded_bundle

BUILD = ROOT / "out" / "native"
PROMPT = "a large red star on a blue background"
SIDES = ("C++", "Python")


class Worker:
    """A process that draws once for each line it gets, and at the end says its peak memory."""

    def __init__(self, command: Sequence[str | Path], environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT
        )

    def draw(self) -> float:
        """Milliseconds of one picture."""
        assert self._process.stdin is not None
        self._process.stdin.write("draw\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> float:
        """End the process; returns its peak memory in bytes."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        peak = self._answer()
        self._process.wait()
        return peak

    def _answer(self) -> float:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self._process.args!r} ended with status {self._process.wait()}")
        return float(line)


def serve_python(bundle: Path, steps: int, height: int, width: int) -> None:
    """The worker in Python; runs in a child process."""
    import time

    with Pipeline.load(bundle, backend="onnxruntime", device="cpu") as pipe:
        for _ in sys.stdin:
            start = time.perf_counter()
            pipe(PROMPT, num_inference_steps=steps, height=height, width=width, scheduler="euler", seed=0)
            print(1000 * (time.perf_counter() - start), flush=True)
    print(peak_bytes(), flush=True)


@contextlib.contextmanager
def workers(bundle: Path, sizes: Sequence[str], environment: dict[str, str]) -> Iterator[dict[str, Worker]]:
    """Both workers, each ready after a first picture."""
    commands: dict[str, list[str | Path]] = {
        "C++": [BUILD / "tests" / "draw_repeatedly", bundle, *sizes],
        "Python": [sys.executable, "-m", "benchmarks.speed.native", "--worker", bundle, *sizes],
    }
    found = {name: Worker(command, environment) for name, command in commands.items()}
    yield found


def run_to_end(command: Sequence[str | Path], environment: dict[str, str], peaks: list[float]) -> None:
    """Run a command, and keep its peak memory in bytes."""
    process = subprocess.Popen(list(map(str, command)), env=environment, cwd=ROOT, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{command[0]} ended with status {status}")
    peaks.append(1024 * usage.ru_maxrss)


def stripped_bytes() -> int:
    """Size of the library without symbols that only debuggers read."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "liblatentrt.so"
        shutil.copy((BUILD / "liblatentrt.so").resolve(), copy)
        subprocess.run(["strip", "--strip-unneeded", copy], check=True)
        return copy.stat().st_size


def measure(arguments: argparse.Namespace, bundle: Path) -> list[Measurement]:
    """All figures, with the sides in turns."""
    environment = {**os.environ, "LATENTRT_ONNXRUNTIME": str(onnxruntime_library())}
    defaults = Bundle.open(bundle).manifest.defaults
    height, width = arguments.height or defaults.height, arguments.width or defaults.width
    sizes = [str(arguments.steps), str(height), str(width)]
    milliseconds: dict[str, list[float]] = {side: [] for side in SIDES}
    peaks: dict[str, list[float]] = {side: [] for side in SIDES}
    with workers(bundle, sizes, environment) as found:
        cases = {side: partial(lambda side: milliseconds[side].append(found[side].draw()), side) for side in SIDES}
        interleaved(cases, arguments.pairs, warm_up=2)
        resident = {side: [worker.close()] for side, worker in found.items()}
    with tempfile.TemporaryDirectory() as folder:
        call = [PROMPT, "--bundle", bundle, "--steps", sizes[0], "--height", sizes[1], "--width", sizes[2]]
        call += ["--scheduler", "euler", "--seed", "0", "-o", Path(folder) / "picture.png"]
        generate = [Path(sys.executable).with_name("latentrt"), "generate", *call, "--backend", "onnxruntime"]
        commands = {"C++": [BUILD / "latentrt-draw", *call], "Python": [*generate, "--device", "cpu"]}
        processes = interleaved(
            {side: partial(run_to_end, commands[side], environment, peaks[side]) for side in SIDES},
            arguments.processes,
        )
    return [
        *(Measurement(f"{side}: latency", "ms", milliseconds[side][2:]) for side in SIDES),
        *(Measurement(f"{side}: first picture", "ms", [1000 * value for value in processes[side]]) for side in SIDES),
        *(Measurement(f"{side}: peak of one picture", "bytes", peaks[side][1:]) for side in SIDES),
        *(Measurement(f"{side}: peak of many pictures", "bytes", resident[side]) for side in SIDES),
        Measurement("library, stripped", "bytes", [stripped_bytes()]),
    ]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Compare the C++ library with Python.")
    parser.add_argument("--bundle", type=Path, help="default: the embedded model")
    parser.add_argument("--steps", type=int, default=20, help="default: 20")
    parser.add_argument("--height", type=int, help="default: the bundle's")
    parser.add_argument("--width", type=int, help="default: the bundle's")
    parser.add_argument("--pairs", type=int, default=20, help="pictures of each, in turns; default: 20")
    parser.add_argument("--processes", type=int, default=5, help="processes of each, in turns; default: 5")
    parser.add_argument("--worker", nargs=4, metavar=("BUNDLE", "STEPS", "HEIGHT", "WIDTH"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        serve_python(Path(arguments.worker[0]), *map(int, arguments.worker[1:]))
        return
    bundle = (arguments.bundle or embedded_bundle()).resolve()
    card = show_environment()
    measurements = measure(arguments, bundle)
    found = {one.name: one for one in measurements}
    show_table(("", "median"), [(one.name, f"{one.p50:,.0f} {one.unit}") for one in measurements])

    def ratio(what: str) -> float:
        return median_ratio(found[f"C++: {what}"].values, found[f"Python: {what}"].values)

    small = bundle == embedded_bundle().resolve()
    targets = [
        Target("latency, C++ over Python", ratio("latency"), 1.02, ""),
        Target("first picture of a process, C++ over Python", ratio("first picture"), 0.6 if small else 1.0, ""),
        Target("peak memory of one picture, C++ over Python", ratio("peak of one picture"), 0.8 if small else 1.0, ""),
        Target("peak memory of many pictures, C++ over Python", ratio("peak of many pictures"), 1.0, ""),
        Target("library, stripped", found["library, stripped"].p50 / 1e6, 3.0, "MB"),
    ]
    settings = {"bundle": bundle.name, "steps": arguments.steps, "onnxruntime": onnxruntime.__version__}
    spread = statistics.quantiles([a / b for a, b in zip(*(found[f"{s}: latency"].values for s in SIDES), strict=True)])
    finish("native", card, {**settings, "quartiles of the latency ratio": spread}, targets, measurements)


if __name__ == "__main__":
    main()
