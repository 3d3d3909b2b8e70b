"""The controller's side of the protocol: start workers, send requests, and keep as many loaded as fit into memory."""

import json
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from benchmarks.common.paths import ROOT

from .environments import PeerError, clean_variables


class Worker:
    """A running worker process; a context manager that ends it."""

    def __init__(self, command: Sequence[str | Path]) -> None:
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 - closed by close
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=clean_variables() | {"PYTHONPATH": str(ROOT)},  # where workers find this package
        )

    def ask(self, do: str, **job: Any) -> dict[str, Any]:
        """Send a request and wait for the answer.

        Raises:
            PeerError: the worker answered with an error, or ended.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            print(json.dumps({"do": do, **job}), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise PeerError(f"its process ended with status {self._process.wait()}: {self._last_words()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise PeerError(answer["error"])
        return answer

    def close(self) -> None:
        """End the process; kill it if it does not end by itself."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _last_words(self) -> str:
        self._log.seek(0)
        lines = [line.strip() for line in self._log if line.strip()]
        return lines[-1][:300] if lines else "no message"


class Residents:
    """Workers that stay loaded between requests, as many as fit into `limit` megabytes.

    When the next worker does not fit, the least recently used ones end first. A worker that is started again loads its
    model and answers the request once with the changes of `warm_up`; neither is counted.
    """

    def __init__(
        self,
        commands: Mapping[str, Sequence[str | Path]],
        loads: Mapping[str, Mapping[str, Any]],
        megabytes: Mapping[str, float],
        limit: float,
        *,
        warm_up: Mapping[str, Any],
    ) -> None:
        self._commands, self._loads, self._megabytes, self._limit = commands, loads, megabytes, limit
        self._warm_up = warm_up
        self._running: dict[str, Worker] = {}  # most recently used last
        self.starts: dict[str, int] = dict.fromkeys(commands, 0)

    @property
    def names(self) -> list[str]:
        """The loaded workers, most recently used last."""
        return list(self._running)

    def ask(self, name: str, do: str, **job: Any) -> dict[str, Any]:
        """The answer of a worker to a request."""
        worker = self._running.pop(name, None)
        if worker is None:
            while self._running and self._taken() + self._megabytes[name] > self._limit:
                self._running.pop(next(iter(self._running))).close()
            worker = Worker(self._commands[name])
            self.starts[name] += 1
            self._running[name] = worker
            worker.ask("load", **self._loads[name])
            worker.ask(do, **{**job, **self._warm_up})
        self._running[name] = worker
        return worker.ask(do, **job)

    def close(self) -> None:
        """End all workers."""
        while self._running:
            self._running.popitem()[1].close()

    def _taken(self) -> float:
        return sum(self._megabytes[name] for name in self._running)
