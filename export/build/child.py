"""The process in which `child_process` calls a function. It ends at once when its parent is gone.

    python -m latentrt.export.build.child

Stdin has one pickle: function, argument, level of the log. Stdout has one for each message: its kind and its value.
"""

import logging
import os
import pickle
import signal
import sys
import threading
import traceback
from logging.handlers import QueueHandler
from typing import NoReturn

_ALONE = 1  # exit status if the parent is gone


class _Outbox:
    """Sends messages, from any thread."""

    def __init__(self) -> None:
        self._file = os.fdopen(os.dup(1), "wb")
        os.dup2(2, 1)  # what libraries print must not come between messages
        self._lock = threading.Lock()

    def send(self, kind: str, value: object) -> None:
        with self._lock:
            try:
                pickle.dump((kind, value), self._file, protocol=pickle.HIGHEST_PROTOCOL)
                self._file.flush()
            except OSError:
                os._exit(_ALONE)


class _Relay(QueueHandler):
    """Sends records of the log, with their texts made."""

    def __init__(self, outbox: _Outbox) -> None:
        super().__init__(None)  # type: ignore[arg-type]  # no queue
        self._outbox = outbox

    def enqueue(self, record: logging.LogRecord) -> None:
        self._outbox.send("log", record.__dict__)


def main() -> NoReturn:
    """The entry point."""
    if sys.platform == "win32":
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends this process, and so the parent's wait for it
    outbox = _Outbox()
    try:
        function, argument, level = pickle.load(sys.stdin.buffer)
        threading.Thread(target=_watch_parent, daemon=True).start()
        logging.root.addHandler(_Relay(outbox))  # by hand, so that the parent alone puts a level before each text
        logging.root.setLevel(level)
        outbox.send("result", function(argument, lambda *progress: outbox.send("progress", progress)))
    except Exception as error:
        outbox.send("error", _sendable(error))
    os._exit(0)  # without the destructors of native libraries, which take time and may crash


def _watch_parent() -> None:
    """The parent sends no more, but its end of the pipe closes when it ends."""
    os.read(0, 1)
    os._exit(_ALONE)


def _sendable(error: Exception) -> Exception:
    """The error, with a note of where it was raised; or another one with its text, if it cannot be pickled."""
    where = "in the process that builds: " + "".join(traceback.format_exception(error))
    error.add_note(where)
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        error = RuntimeError(f"{type(error).__name__}: {error}")
        error.add_note(where)
    return error


if __name__ == "__main__":
    main()
