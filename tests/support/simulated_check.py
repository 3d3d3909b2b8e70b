"""The GPU check on the simulated GPU, each job in a process of its own, with planted failures.

    python simulated_check.py '{"crash": ["states.tensorrt"], "wait": 0.5}' WORDS…

`crash` names jobs whose process dies by a signal after its first finding, `hang` jobs that never end, and `wait` is how
many seconds the host waits each time it waits for the GPU. `options` has arguments of parts, which make them short;
`needs` and `grace` are seconds that take the place of those of the check.
"""

import importlib
import json
import os
import signal
import sys
import time
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest import mock

from support.simulator import Cuda, machine

from benchmarks.gpu import __main__ as gpu_main
from benchmarks.gpu import runner
from benchmarks.gpu.report import Report

# Only what is needed to see every part work; figures of a simulator tell nothing.
SHORT: dict[str, dict[str, Any]] = {
    "ceilings": {"side": 32, "megabytes": 1, "repetitions": 2},
    "states": {"steps": 2},
    "pictures": {"steps": 1, "precisions": ["fp32"]},
    "waits": {"steps": 4},
    "loras": {"steps": 1},
    "noise": {"seeds": [9], "sizes": [16]},
    "ideas": {"calls": 2, "repetitions": 1},
    "ort_options": {"steps": 1, "repetitions": 1},
    "full_size": {"pixels": 64, "batches": [1]},
    "latency": {"steps": 1, "repetitions": 1, "ceilings": lambda _: {"float16": 1e15, "tf32": 1e14, "bytes": 1e13}},
}
NO_GPU_FOR_PYTORCH = ("ceilings", "noise")  # parts that use PyTorch's own GPU: here they run on the CPU


def main() -> int:
    """Both the check itself, and each of its jobs: those get the same first argument."""
    given = sys.argv.pop(1)
    faults = json.loads(given)
    runner.GRACE = faults.get("grace", 2.0)
    if "needs" in faults:
        runner.PARTS = {name: replace(part, needs=faults["needs"]) for name, part in runner.PARTS.items()}
    job = sys.argv[1] if "--here" in sys.argv else ""
    if job in NO_GPU_FOR_PYTORCH:
        sys.argv += ["--device", "cpu"]
    command = gpu_main.command

    def simulated(*arguments: Any, **more: Any) -> list[str]:
        words = command(*arguments, **more)
        return [sys.executable, "-u", __file__, given, *words[words.index("benchmarks.gpu") + 1 :]]

    with (
        machine(onnxruntime={}) as gpu,
        mock.patch.object(gpu_main, "command", simulated),
        mock.patch.object(gpu_main, "importlib", SimpleNamespace(import_module=partial(part, faults))),
    ):
        if wait := faults.get("wait"):
            slow_down(gpu.cuda, wait)
        return gpu_main.main()


def part(faults: dict[str, Any], name: str) -> SimpleNamespace:
    """The module of a part, or one that fails as planned."""
    module = importlib.import_module(name)
    options = faults.get("options", SHORT).get(name.rpartition(".")[2], {})

    if name.endswith(".norms"):
        module.CASES = module.CASES[4:7]  # small ones

    def run(place: Any, report: Report, **more: Any) -> None:
        if report.file.stem in faults.get("crash", ()):
            report.figure("before", 1)
            print("about to crash", flush=True)
            os.kill(os.getpid(), signal.SIGSEGV)
        if report.file.stem in faults.get("hang", ()):
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(1000)
        module.run(place, report, **{**options, **more})

    return SimpleNamespace(run=run)


def slow_down(cuda: Cuda, seconds: float) -> None:
    """Each wait for an event or a stream takes so long."""
    finish = cuda._finish

    def slowly(*arguments: Any, **more: Any) -> None:
        time.sleep(seconds)
        finish(*arguments, **more)

    cuda._finish = slowly  # type: ignore[method-assign]


if __name__ == "__main__":
    sys.exit(main())
