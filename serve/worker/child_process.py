"""One run of a device's process, as its parent sees it: starts it, hears it, and reaps it. Never blocks the event loop.

Knows nothing of jobs or of starting again.
"""

import asyncio
import contextlib
import logging
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from .wire import ChildConfig, Outbox, Submit, SubmitFailed, ToParent

logger = logging.getLogger(__name__)

_LAST_BREATH = 10.0  # seconds between the end of the connection and that of the process


class ChildProcess:
    """A process that has been started.

    A thread starts it, reads from it and waits for its end. It has to be one thread, as Linux kills the process when
    the thread that started it ends.
    """

    def __init__(self, config: ChildConfig, heard: Callable[[ToParent], None], ended: Callable[[str], None]) -> None:
        """Start it. The event loop calls `heard` with each message, and `ended` at last, with how it ended."""
        self._config, self._heard, self._ended = config, heard, ended
        self._loop = asyncio.get_running_loop()
        ours, self._theirs = socket.socketpair()
        self._connection = Connection(ours.detach())
        self._outbox = Outbox(self._connection, self._unsendable)
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._killed = False
        threading.Thread(target=self._keep, name="latentrt-keeper", daemon=True).start()

    @property
    def pid(self) -> int | None:
        """Of the process, where it runs."""
        return None if self._process is None else self._process.pid

    def send(self, message: object) -> None:
        """Send this soon. A `Submit` that cannot be sent is answered by `SubmitFailed`."""
        self._outbox.put(message)

    def kill(self) -> None:
        """End it now."""
        with self._lock:
            self._killed = True
            if self._process is not None:
                self._process.kill()

    def _keep(self) -> None:
        try:
            self._start()
            self._hear()
            status = self._reaped()
        except OSError as error:
            status = f"could not be started: {error}"
        self._outbox.finish()
        self._connection.close()
        self._post(self._ended, status)

    def _start(self) -> None:
        descriptor = self._theirs.fileno()
        # Its module may be one of a folder that only this process has in its path.
        path = os.pathsep.join(folder or os.getcwd() for folder in sys.path)  # noqa: PTH109
        # -P: modules are not taken from the folder in which the server was started.
        command = [sys.executable, "-P", "-m", "latentrt.serve.worker.child", str(descriptor), str(os.getpid())]
        with self._theirs, self._lock:
            self._process = subprocess.Popen(
                command,
                pass_fds=[descriptor],
                env={**os.environ, "PYTHONPATH": path},
                stdin=subprocess.DEVNULL,
                process_group=0,  # Ctrl-C is for the parent
            )
            if self._killed:
                self._process.kill()
        self._outbox.put(self._config)
        self._outbox.start()

    def _hear(self) -> None:
        try:
            while True:
                self._post(self._heard, self._connection.recv())
        except (EOFError, OSError):
            return
        except Exception:  # of unpickling
            logger.exception("a message of a device's process could not be read")
            self.kill()

    def _reaped(self) -> str:
        assert self._process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_LAST_BREATH)
        self.kill()
        status = self._process.wait()
        return f"was ended by signal {-status}" if status < 0 else f"exited with status {status}"

    def _unsendable(self, message: object, error: Exception) -> None:
        logger.error("%s cannot be sent to a device's process", type(message).__name__, exc_info=error)
        if isinstance(message, Submit):
            self._post(self._heard, SubmitFailed(message.number, f"the job cannot be sent: {error}"))

    def _post(self, call: Callable[[Any], None], argument: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
            self._loop.call_soon_threadsafe(call, argument)
