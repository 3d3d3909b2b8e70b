"""Calls a function in a process of its own, whose death is an error here instead of the death of this process.

What the function logs and its progress arrive here, as if it had been called in this process. Knows nothing of engines.
"""

import logging
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

_CONTROL_C_EXIT = 0xC000013A  # status of a process that Windows ended for Ctrl-C

Progress = Callable[[str, float], object]
T = TypeVar("T")
R = TypeVar("R")


class ChildDiedError(Exception):
    """The process ended before the function returned or raised.

    Attributes:
        how: what ended it, such as "SIGSEGV (Segmentation fault)".
        killed: whether that came from outside, as where the system has no memory left.
        crashed: whether it was a fault of the process itself.
    """

    def __init__(self, status: int) -> None:
        """Take the exit status as `subprocess` has it: negative for a signal."""
        self.killed = status < 0 and -status == getattr(signal, "SIGKILL", None)
        self.crashed = not self.killed and not 0 <= status < 256  # Windows has large numbers for crashes
        if status < 0:
            self.how = f"{signal.Signals(-status).name} ({signal.strsignal(-status)})"
        else:
            self.how = f"exit status {status if status < 256 else hex(status)}"
        super().__init__(self.how)


def call_in_child(function: Callable[[T, Progress], R], argument: T, progress: Progress) -> R:
    """What `function(argument, progress)` returns or raises; an interrupt, or an error of `progress`, ends the process.

    Args:
        function: found by its module and name, so no lambda.
        argument: data that `pickle` takes, as must be what is returned or raised.
        progress: called in this thread.

    Raises `ChildDiedError` if the process ended before.
    """
    process = None
    try:
        with _signals_are_ours():
            process = _started()
        assert process.stdin is not None
        with suppress(OSError):  # it has ended, which is told below
            process.stdin.write(pickle.dumps((function, argument, logging.getLogger("latentrt").getEffectiveLevel())))
            process.stdin.flush()
        result: R = _result(process, progress)
        return result
    finally:
        if process is not None:
            _end(process)


def _started() -> "subprocess.Popen[bytes]":
    # The function may be in a module of a folder that only this process has in its path.
    path = os.pathsep.join(folder or os.getcwd() for folder in sys.path)  # noqa: PTH109
    # -P: modules are not taken from the folder in which the command was started.
    command = [sys.executable, "-P", "-m", "latentrt.export.build.child"]
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)


@contextmanager
def _signals_are_ours() -> Iterator[None]:
    """A process that is started here never gets Ctrl-C or SIGTERM, which terminals and others send to both."""
    if sys.platform == "win32":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _result(process: "subprocess.Popen[bytes]", progress: Progress) -> Any:
    assert process.stdout is not None
    while True:
        try:
            kind, value = pickle.load(process.stdout)
        except (EOFError, pickle.UnpicklingError):  # it ended, maybe in the middle of a message
            status = process.wait()
            if status == _CONTROL_C_EXIT:
                raise KeyboardInterrupt from None
            raise ChildDiedError(status) from None
        match kind:
            case "progress":
                progress(*value)
            case "log":
                record = logging.makeLogRecord(value)
                if (logger := logging.getLogger(record.name)).isEnabledFor(record.levelno):
                    logger.handle(record)
            case "result":
                return value
            case "error":
                raise value


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Now, in whatever it is: it holds nothing that another process would miss."""
    process.kill()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(OSError):
                pipe.close()
    process.wait()
