"""Runs cases in worker processes, each with a limit of time and memory, and reports what is no error of latentrt."""

import importlib
import multiprocessing
import os
import resource
import sys
import tempfile
import time
import traceback
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

SECONDS, GIGABYTES = 10.0, 2  # of processor time, or six times that by the clock


def serve(kind: str, ends: Connection, folder: str) -> None:
    """Run the cases whose seeds come in; each is answered with what came of it."""
    module: Any = importlib.import_module(f"tests.fuzz.{kind}")
    module.make_files(Path(folder))
    run = module.runner()
    from latentrt.runtime.errors import LatentRTError

    own = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (own + (GIGABYTES << 30) + (2 << 30), resource.RLIM_INFINITY))
    sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115  # warnings about the cases
    ends.send("ready")
    while True:
        seed = ends.recv()
        try:
            run(seed)
            outcome = "done"
        except LatentRTError as error:
            outcome = f"refused {type(error).__name__}" if len(str(error)) < 2000 else f"LONG message: {error!s:.100}"
        except BaseException as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            ours = [f for f in traceback.extract_tb(error.__traceback__) if "/runtime/" in f.filename][-1:]
            at = ", ".join(f"{Path(f.filename).name}:{f.lineno}" for f in [*ours, where])
            outcome = f"BARE {type(error).__name__} at {at}: {error!s:.100}"
        ends.send(outcome)


class Worker:
    """A child process, begun anew after a crash, a hang or too much memory."""

    def __init__(self, kind: str) -> None:
        self._kind, self._process = kind, None
        self.begin()

    def begin(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="latentrt-fuzz-")
        self._ends, theirs = multiprocessing.Pipe()
        context = multiprocessing.get_context("spawn")
        self._process = context.Process(target=serve, args=(self._kind, theirs, self._folder.name), daemon=True)
        self._process.start()
        theirs.close()
        if not self._ends.poll(120) or self._ends.recv() != "ready":
            raise RuntimeError("the worker does not start")

    def outcome(self, seed: int) -> str:
        """What came of a case."""
        self._ends.send(seed)
        end, before, used = time.monotonic() + 6 * SECONDS, self._resident(), self._seconds()
        while time.monotonic() < end and self._seconds() - used < SECONDS:
            try:
                if self._ends.poll(0.05):
                    return self._ends.recv()
            except EOFError:
                self._process.join()
                return self._again(f"CRASH with status {self._process.exitcode}")
            if self._resident() - before > GIGABYTES << 30:
                return self._again("MEMORY")
        return self._again("HANG")

    def _resident(self) -> int:
        try:
            return int(Path(f"/proc/{self._process.pid}/statm").read_text().split()[1]) * resource.getpagesize()
        except (OSError, IndexError):
            return 0

    def _seconds(self) -> float:
        try:
            fields = Path(f"/proc/{self._process.pid}/stat").read_text().rsplit(")", 1)[1].split()
            return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        except (OSError, IndexError):
            return 0.0

    def _again(self, outcome: str) -> str:
        self.close()
        self.begin()
        return outcome

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.join()
        self._folder.cleanup()


def run(kind: str, seed: int, count: int, seconds: float = float("inf")) -> tuple[Counter[str], dict[int, str]]:
    """Outcomes by kind, and those of cases that failed by seed; stops after some seconds."""
    module: Any = importlib.import_module(f"tests.fuzz.{kind}")
    os.environ.update({f"LATENTRT_{name}": value for name, value in module.LIMITS.items()})
    worker, counts, failed = Worker(kind), Counter[str](), {}
    end = time.monotonic() + seconds
    try:
        for case in range(seed * 1_000_000, seed * 1_000_000 + count):
            if time.monotonic() > end:
                break
            outcome = worker.outcome(case)
            counts[" ".join(outcome.split()[:2]) if outcome.startswith("refused") else outcome.split()[0]] += 1
            if not outcome.startswith(("done", "refused")):
                failed[case] = outcome
    finally:
        worker.close()
    return counts, failed
