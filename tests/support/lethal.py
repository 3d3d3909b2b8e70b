"""Pipelines for workers of Ray: one that a job kills, and one that breaks at a job, as after a fault of a GPU."""

import os
import signal
from pathlib import Path
from typing import Any

from latentrt.runtime import Pipeline
from latentrt.serve.batch.model import Model, load

LOG = Path("begun.log")  # in the folder of the driver


def load_lethal(model: Model) -> Pipeline:
    """A pipeline that kills its process when it draws "poison", and draws nothing any more after the first "fault"."""
    pipe = load(model)
    stream, broken = pipe.stream, []

    def lethal(prompt: Any = None, **options: Any) -> Any:
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        with LOG.open("a") as log:
            log.write("".join(f"{one}\n" for one in prompts))
        if "poison" in prompts:
            os.kill(os.getpid(), signal.SIGKILL)
        if "fault" in prompts and not Path("fault").exists():
            Path("fault").touch()
            broken.append(True)
        if broken:
            raise RuntimeError("an illegal memory access was encountered")
        return stream(prompt, **options)

    pipe.stream = lethal  # type: ignore[method-assign]
    return pipe


def load_nothing(_: Model) -> Pipeline:
    """A load that kills its process, as the kernel does where memory ends."""
    with LOG.open("a") as log:
        log.write("load\n")
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError
