"""Functions that tests call in a process of its own, where lambdas and patches of the test's process are not known."""

import ctypes
import logging
import os
import signal
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

from latentrt.runtime.errors import InputError

if TYPE_CHECKING:
    from latentrt.export.build.trt_job import Finished, Job

Progress = Callable[[str, float], object]


def build_simulated(job: "Job", progress: Progress) -> "Finished":
    """The build of an engine on a simulated GPU."""
    from latentrt.export.build.trt_job import build_here  # here, as other functions need to start quickly

    from .simulator import machine

    with machine():
        return build_here(job, progress)


def die(how: str | int, _: Progress) -> NoReturn:
    """End this process: by a fault of its memory, by a signal, or with a status."""
    if how == "fault":
        ctypes.string_at(0)
    if isinstance(how, str):
        os.kill(os.getpid(), getattr(signal, how))
        time.sleep(60)
    os._exit(int(how))


def say(text: str, progress: Progress) -> str:
    """Log, print and report in every way that a library has."""
    logger = logging.getLogger("latentrt.child_builds")
    progress("first", 0.25)
    logger.warning("%s, a warning", text)
    logger.debug("%s, too much", text)
    os.write(1, b"from native code\n")
    print("from Python", flush=True)
    progress("second", 0.5)
    return text.upper()


def fail(kind: str, _: Progress) -> NoReturn:
    """Raise an error of ours, or one that cannot be pickled."""
    if kind == "ours":
        raise InputError("no such size; expected 512")

    class LocalError(Exception):
        pass

    raise LocalError("cannot be pickled")


def wait(seconds: float, progress: Progress) -> None:
    """Report this process's number, and wait."""
    progress(str(os.getpid()), 0.0)
    time.sleep(seconds)


def big(size: int, _: Progress) -> Any:
    """So many bytes."""
    return bytes(range(256)) * (size // 256)
