"""The steps of a training that saves its state, and goes on from it when it is started again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

REPORTED_EVERY = 100
SAVED_EVERY = 250


class Run:
    """A training of `steps` steps, whose state is kept in `file`.

    Attributes:
        state: what was saved, and what the caller adds to it; empty at first.
        step: steps that are done.
        loss: its moving average.
    """

    def __init__(self, file: Path, steps: int) -> None:
        self.file, self.steps = file, steps
        self.state: dict[str, Any] = torch.load(file, map_location="cpu") if file.exists() else {}
        self.step, self.spent = int(self.state.get("step", 0)), float(self.state.get("spent", 0.0))
        self.loss = float(self.state.get("running", 0.0))

    def each(self, networks: Callable[[], dict[str, Any]]) -> Iterator[float]:
        """Yield the progress in [0, 1) at each step, and save the state with `networks` now and then."""
        self._save(networks)
        last = time.monotonic()
        while self.step < self.steps:
            yield self.step / self.steps
            self.step += 1
            now = time.monotonic()
            self.spent, last = self.spent + now - last, now
            if self.step % REPORTED_EVERY == 0:
                left = (self.steps - self.step) * self.spent / self.step / 60
                speed = self.step / self.spent
                print(f"{self.step:6d}  loss {self.loss:.4f}  {speed:.2f} it/s  {left:.1f} min left", flush=True)
            if self.step % SAVED_EVERY == 0:
                self._save(networks)
        self._save(networks)

    def note(self, loss: float) -> None:
        """Tell the loss of a step."""
        self.loss += (loss - self.loss) * max(0.01, 1 / (self.step + 1))

    def _save(self, networks: Callable[[], dict[str, Any]]) -> None:
        self.state.update(networks(), step=self.step, spent=self.spent, running=self.loss)
        self.file.parent.mkdir(parents=True, exist_ok=True)
        partial = self.file.with_suffix(".partial")
        torch.save(self.state, partial)
        partial.replace(self.file)  # so that nobody reads a partial file

    def __str__(self) -> str:
        return f"{self.step} steps in {self.spent / 60:.0f} minutes, loss {self.loss:.4f}"
