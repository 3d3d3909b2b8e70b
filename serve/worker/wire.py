"""What a device's process and its parent send each other, and the thread that sends it. Knows neither of them."""

import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Protocol, cast

from latentrt.serve.messages import Admitted, Called, DispatcherOptions, Event, Job, ModelSpec, RefusedError
from latentrt.serve.places import named
from latentrt.serve.service import Load

DISPATCHER = "latentrt.serve.dispatcher.dispatcher:Dispatcher"


class DispatcherLike(Protocol):
    """What runs the models of one device. Its methods are thread-safe; `overdue`, `broken` and `load` do not wait."""

    def start(self) -> None:
        """Load, warm up and measure; returns when ready. Raises `LatentRTError`."""

    def submit(self, job: Job) -> Admitted:
        """Accept a job; raises `RefusedError`."""

    def cancel(self, job: str) -> None:
        """Stop drawing a job; unknown ones are ignored."""

    def set_loaded(self, model: str, loaded: bool) -> Callable[[], None]:
        """Load a model, or refuse work for it from now on and free its memory; raises `RefusedError`.

        The function that is returned waits until it is so; it raises `RefusedError`, too.
        """

    def load(self) -> Load:
        """What the device does now."""

    def overdue(self) -> float:
        """Seconds by which the present call exceeds its limit; <= 0 while all is well."""

    def broken(self) -> str | None:
        """Why the process cannot go on; None while all is well."""

    def close(self) -> None:
        """Stop the threads, and give the device back."""


class MakeDispatcher(Protocol):
    """The class of a dispatcher. `listen` is called from its threads and does not block."""

    def __call__(
        self, models: Sequence[ModelSpec], options: DispatcherOptions, listen: Callable[[Event | Called], None]
    ) -> DispatcherLike:
        """A dispatcher that has not started."""


def dispatcher_named(place: str) -> MakeDispatcher:
    """The class at "module:name"; raises `BackendError`."""
    return cast(MakeDispatcher, named(place))


# --- to the device's process


@dataclass(frozen=True, slots=True)
class ChildConfig:
    """The first message: what to run.

    Attributes:
        dispatcher: "module:name" of its class.
        heartbeat: seconds between two `Beat`.
        log_format, verbose: as for `logs.configure`.
    """

    models: tuple[ModelSpec, ...]
    options: DispatcherOptions
    dispatcher: str = DISPATCHER
    heartbeat: float = 1.0
    log_format: str = "text"
    verbose: bool = False


@dataclass(frozen=True, slots=True)
class Submit:
    """Asks for `Accepted`, `Refused` or `SubmitFailed` of this number."""

    number: int
    job: Job


@dataclass(frozen=True, slots=True)
class Cancel:
    """Stop drawing this job."""

    job: str


@dataclass(frozen=True, slots=True)
class SetLoaded:
    """Load a model, or unload it. Asks for `Settled`, `Refused` or `SubmitFailed` of this number, when it is so."""

    number: int
    model: str
    loaded: bool


@dataclass(frozen=True, slots=True)
class Close:
    """Stop and exit."""


# --- to the parent


@dataclass(frozen=True, slots=True)
class Ready:
    """The models are loaded."""

    load: Load


@dataclass(frozen=True, slots=True)
class StartFailed:
    """The process exits, as it could not load. `final`: trying again does not help, such as for a missing bundle."""

    message: str
    final: bool


@dataclass(frozen=True, slots=True)
class Accepted:
    """The answer to `Submit`, and what the device does with the job."""

    number: int
    admitted: Admitted
    load: Load


@dataclass(frozen=True, slots=True)
class Refused:
    """The answer to `Submit`, or to `SetLoaded`."""

    number: int
    error: RefusedError


@dataclass(frozen=True, slots=True)
class SubmitFailed:
    """The answer to `Submit` or `SetLoaded` where the dispatcher or the connection failed."""

    number: int
    message: str


@dataclass(frozen=True, slots=True)
class Settled:
    """The answer to `SetLoaded`."""

    number: int


@dataclass(frozen=True, slots=True)
class Happened:
    """An event of a job, or a UNet call."""

    event: Event | Called


@dataclass(frozen=True, slots=True)
class Beat:
    """The process is alive. `load`: None while it loads."""

    load: Load | None


@dataclass(frozen=True, slots=True)
class Broken:
    """The process exits, as it cannot go on."""

    reason: str


ToParent = Ready | StartFailed | Accepted | Refused | SubmitFailed | Settled | Happened | Beat | Broken


class Outbox(threading.Thread):
    """Sends messages in their order, so that nobody waits for the other side to read."""

    def __init__(self, connection: Connection, unsendable: Callable[[object, Exception], None]) -> None:
        """`unsendable` is called, from this thread, with messages that cannot be pickled."""
        super().__init__(name="latentrt-outbox", daemon=True)
        self._connection, self._unsendable = connection, unsendable
        self._queue: queue.SimpleQueue[object] = queue.SimpleQueue()

    def put(self, message: object) -> None:
        """Send this after all before it. Never blocks."""
        self._queue.put(message)

    def finish(self, seconds: float | None = None) -> None:
        """Wait until all has been sent, or the other side is gone, or the time is over."""
        self._queue.put(None)
        if self.ident is not None:
            self.join(seconds)

    def waiting(self) -> int:
        """Messages that have not been sent."""
        return self._queue.qsize()

    def run(self) -> None:
        """The thread."""
        while (message := self._queue.get()) is not None:
            try:
                data = ForkingPickler.dumps(message)
            except Exception as error:  # pickling runs code of the objects
                self._unsendable(message, error)
                continue
            try:
                self._connection.send_bytes(data)
            except (OSError, ValueError):  # the other side is gone; whoever reads from it notices too
                return
