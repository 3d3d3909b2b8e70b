"""The process of one device: builds the dispatcher, and answers its parent over a socket.

Exits with status 70 when the dispatcher hangs or cannot go on, and at once when the parent is gone. Knows no HTTP.

    python -m latentrt.serve.worker.child FILE_DESCRIPTOR PARENT
"""

import ctypes
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from typing import NoReturn

from latentrt.runtime.errors import LatentRTError
from latentrt.serve.logs import configure
from latentrt.serve.messages import Called, Event, Preview, Progress, RefusedError

from .wire import (
    Accepted,
    Beat,
    Broken,
    Cancel,
    ChildConfig,
    Close,
    DispatcherLike,
    Happened,
    Outbox,
    Ready,
    Refused,
    SetLoaded,
    Settled,
    StartFailed,
    Submit,
    SubmitFailed,
    dispatcher_named,
)

logger = logging.getLogger(__name__)

CANNOT_GO_ON = 70
_WATCH_EVERY = 0.2  # seconds
_FLUSH = 5.0  # seconds for the last messages
# Messages that wait while the parent does not read; then progress, previews and times are left out.
_MOST_WAITING = 1000
_PR_SET_PDEATHSIG = 1


class _Child:
    def __init__(self, connection: Connection, config: ChildConfig) -> None:
        self._connection, self._config = connection, config
        self._outbox = Outbox(connection, self._unsendable)
        self._dispatcher: DispatcherLike | None = None
        self._ready = False

    def run(self) -> NoReturn:
        """Answer until the parent says so or is gone. Other threads load and watch meanwhile."""
        self._outbox.start()
        for target in (self._load, self._watch):
            threading.Thread(target=target, name=f"latentrt-{target.__name__[1:]}", daemon=True).start()
        try:
            while not isinstance(message := self._connection.recv(), Close):
                self._answer(message)
        except (EOFError, OSError):
            os._exit(CANNOT_GO_ON)  # nobody is left who wants pictures
        if self._dispatcher is not None and self._ready:
            self._dispatcher.close()
        self._leave(0)

    def _answer(self, message: Submit | SetLoaded | Cancel) -> None:
        match message:
            case Cancel(job):
                if self._dispatcher is not None:
                    self._dispatcher.cancel(job)
            case Submit(number):
                self._answered(number, partial(self._submit, message))
            case SetLoaded(number):
                self._answered(number, partial(self._set_loaded, message))

    def _answered(self, number: int, work: Callable[[], None]) -> None:
        """Work that answers; what it raises is the answer otherwise."""
        try:
            work()
        except RefusedError as error:
            self._outbox.put(Refused(number, error))
        except Exception as error:
            logger.exception("a message could not be answered")
            self._outbox.put(SubmitFailed(number, f"{type(error).__name__}: {error}"))

    def _started(self) -> DispatcherLike:
        if self._dispatcher is None or not self._ready:
            raise RefusedError("starting", "the models are being loaded", 1.0)
        return self._dispatcher

    def _submit(self, message: Submit) -> None:
        dispatcher = self._started()
        admitted = dispatcher.submit(message.job)
        self._outbox.put(Accepted(message.number, admitted, dispatcher.load()))

    def _set_loaded(self, message: SetLoaded) -> None:
        wait = self._started().set_loaded(message.model, message.loaded)

        def settle() -> None:
            wait()
            self._outbox.put(Settled(message.number))

        target = partial(self._answered, message.number, settle)
        threading.Thread(target=target, name=f"latentrt-settle {message.model}", daemon=True).start()

    def _load(self) -> None:
        try:
            make = dispatcher_named(self._config.dispatcher)
            self._dispatcher = make(self._config.models, self._config.options, self._listen)
            self._dispatcher.start()
        except LatentRTError as error:
            logger.debug("where it was raised:", exc_info=error)
            self._leave(1, StartFailed(str(error), final=True))
        except BaseException as error:
            logger.exception("the models could not be loaded")
            self._leave(CANNOT_GO_ON, StartFailed(f"{type(error).__name__}: {error}", final=False))
        self._ready = True
        self._outbox.put(Ready(self._dispatcher.load()))

    def _listen(self, event: Event | Called) -> None:
        if not isinstance(event, Progress | Preview | Called) or self._outbox.waiting() < _MOST_WAITING:
            self._outbox.put(Happened(event))

    def _watch(self) -> None:
        next_beat = 0.0
        while True:
            if (dispatcher := self._dispatcher) is not None:
                reason = dispatcher.broken() if self._ready else None  # until then `_load` says why
                if reason is None and (late := dispatcher.overdue()) > 0:
                    reason = f"a call of the device takes {late:.1f} s longer than its limit"
                if reason is not None:
                    logger.error("this process cannot go on: %s", reason)
                    self._leave(CANNOT_GO_ON, Broken(reason))
            if (now := time.monotonic()) >= next_beat:
                next_beat = now + self._config.heartbeat
                self._outbox.put(Beat(dispatcher.load() if dispatcher is not None and self._ready else None))
            time.sleep(min(_WATCH_EVERY, self._config.heartbeat))

    def _unsendable(self, message: object, error: Exception) -> None:
        logger.critical("%s cannot be sent", type(message).__name__, exc_info=error)
        os._exit(CANNOT_GO_ON)

    def _leave(self, status: int, last: object = None) -> NoReturn:
        """Exit without the destructors of native libraries, which may hang."""
        if last is not None:
            self._outbox.put(last)
        self._outbox.finish(_FLUSH)
        logging.shutdown()
        os._exit(status)


def _die_with(parent: int) -> None:
    """The kernel kills this process when its parent dies, also while a native call does not let go of the GIL."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(CANNOT_GO_ON)


def _died(caught: threading.ExceptHookArgs) -> None:
    """A thread that died would leave this process half alive."""
    logger.critical("a thread died", exc_info=caught.exc_value)
    os._exit(CANNOT_GO_ON)


def main() -> None:
    """The entry point."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the parent decides when to stop
    _die_with(int(sys.argv[2]))
    connection = Connection(int(sys.argv[1]))
    config: ChildConfig = connection.recv()
    configure(config.log_format, verbose=config.verbose, prefix=f"[{config.options.shown_name}] ")
    threading.excepthook = _died
    try:
        _Child(connection, config).run()
    except Exception:
        logger.critical("this process cannot go on", exc_info=True)
        os._exit(CANNOT_GO_ON)


if __name__ == "__main__":
    main()
