"""A device in a process of its own, which is started anew with growing delays when it ends.

Knows nothing of other devices, and nothing of how jobs are drawn.
"""

import asyncio
import itertools
import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any

from latentrt.runtime.errors import BackendError
from latentrt.serve.messages import Admitted, Called, Event, Failed, FailedKind, Job, RefusedError
from latentrt.serve.service import Load

from .child_process import ChildProcess
from .wire import (
    Accepted,
    Beat,
    Broken,
    Cancel,
    ChildConfig,
    Close,
    Happened,
    Ready,
    Refused,
    SetLoaded,
    Settled,
    StartFailed,
    Submit,
    SubmitFailed,
    ToParent,
)
from .worker import Watchers, hear

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Timing:
    """When to start a process anew, and when to end it. All in seconds.

    Attributes:
        shortest, longest: before it is started anew; doubled each time.
        healthy: after so long without a fault the delay is the shortest again.
        silent: without a heartbeat until it is killed.
        closing: for a process to end by itself, and for a killed one to be gone.
        starts: in a row that may fail until the worker is not live any more.
    """

    shortest: float = 1.0
    longest: float = 60.0
    healthy: float = 180.0
    silent: float = 60.0
    closing: float = 10.0
    starts: int = 5


class WorkerProcess:
    """One device; see `Worker`."""

    def __init__(self, config: ChildConfig, timing: Timing | None = None, watchers: Watchers | None = None) -> None:
        """Starts nothing yet."""
        self._watchers = watchers or Watchers()
        self._config, self._timing = config, timing or Timing()
        self._name = config.options.shown_name
        self._child: ChildProcess | None = None
        self._task: asyncio.Task[None] | None = None
        self._numbers = itertools.count(1)
        self._up: asyncio.Future[None]  # done when it has been ready for the first time
        self._ready_at: float | None = None  # in this run of the process
        self._answers: dict[int, tuple[str, asyncio.Future[Any]]] = {}  # and the jobs that they are about
        self._unloaded = set(config.options.unloaded)
        self._begun_without: set[str] = set()  # models that this run of the process has not loaded
        self._listeners: dict[str, Callable[[Event], None]] = {}
        self._load: Load | None = None
        self._ready = self._closing = self._hung = False
        self._reason = self._final = ""  # why it ended, and why starting it again would not help
        self._silent = 0  # heartbeats that were missed
        self._faults = self._failed_starts = 0
        self._retry_at = 0.0

    @property
    def models(self) -> Collection[str]:
        """Names of the models that it serves."""
        return [model.name for model in self._config.models]

    @property
    def ready(self) -> bool:
        """Whether it takes jobs now."""
        return self._ready and not self._closing

    @property
    def live(self) -> bool:
        """False when it failed to come up some times in a row, cannot even be killed, or nobody starts it any more."""
        if self._task is not None and self._task.done() and not self._closing:
            return False
        return not self._hung and not self._final and self._failed_starts < self._timing.starts

    @property
    def retry_after(self) -> float:
        """Seconds until it is started anew."""
        return max(1.0, self._retry_at - asyncio.get_running_loop().time())

    @property
    def pid(self) -> int | None:
        """Of the process, where it runs."""
        return None if self._child is None else self._child.pid

    def load(self) -> Load:
        """As of its last heartbeat."""
        if self._load is None or not self.ready:
            return Load(self._name, False, 0, 0, 0.0)
        return self._load

    async def start(self) -> None:
        """Start it, and return when it is ready. Raises `BackendError` where it says that it cannot load."""
        self._up = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._keep_running())
        await asyncio.wait({self._up, self._task}, return_when=asyncio.FIRST_COMPLETED)
        if not self._up.done():
            if not self._task.cancelled() and (error := self._task.exception()) is not None:
                raise error
            raise BackendError(f"{self._name}: {self._final or self._reason or 'stopped while it was starting'}")

    async def submit(self, job: Job, listen: Callable[[Event], None]) -> Admitted:
        """See `Worker`."""
        if not self.ready or self._child is None:
            raise self._starting()
        if job.id in self._listeners:
            raise ValueError(f"the job {job.id} is under way")
        number, child = next(self._numbers), self._child
        answer: asyncio.Future[Admitted] = asyncio.get_running_loop().create_future()
        self._answers[number] = job.id, answer
        self._listeners[job.id] = listen
        child.send(Submit(number, job))
        try:
            return await answer
        except BaseException as error:
            self._listeners.pop(job.id, None)
            if isinstance(error, asyncio.CancelledError):
                child.send(Cancel(job.id))
            raise
        finally:
            self._answers.pop(number, None)

    async def set_loaded(self, model: str, loaded: bool) -> None:
        """See `Worker`."""
        self._unloaded = self._unloaded - {model} if loaded else self._unloaded | {model}
        if not self.ready or self._child is None:
            return
        number, answer = next(self._numbers), asyncio.get_running_loop().create_future()
        self._answers[number] = "", answer
        self._child.send(SetLoaded(number, model, loaded))
        try:
            await answer
        finally:
            self._answers.pop(number, None)

    def cancel(self, job: str) -> None:
        """See `Worker`."""
        if self._child is not None and job in self._listeners:
            self._child.send(Cancel(job))

    async def close(self) -> None:
        """Ask it to end, and kill it where it does not."""
        self._closing = True
        if self._task is None:
            return
        if self._child is None:
            self._task.cancel()  # it waits to be started anew
        else:
            self._child.send(Close())
            await asyncio.wait({self._task}, timeout=self._timing.closing)
            self.kill()
        await asyncio.wait({self._task}, timeout=self._timing.closing)
        if not self._task.done():
            self._task.cancel()

    def kill(self) -> None:
        """End it now."""
        self._closing = True
        if self._child is not None:
            self._child.kill()

    async def _keep_running(self) -> None:
        loop, timing = asyncio.get_running_loop(), self._timing
        while not self._closing:
            self._reason = self._final = ""
            how, lasted = await self._run()
            if self._closing or (self._final and not self._up.done()):
                self._gone(how)
                return
            self._failed_starts = self._failed_starts + 1 if lasted is None else 0
            self._faults = 1 if lasted is not None and lasted >= timing.healthy else self._faults + 1
            delay = min(timing.longest, timing.shortest * 2.0 ** min(self._faults - 1, 30))
            self._retry_at = loop.time() + delay
            self._final = ""  # it has run before, so trying again may help
            self._gone(how)
            logger.error("%s: its process %s; starting it anew in %g s", self._name, self._why(how), delay)
            await asyncio.sleep(delay)
            self._watchers.restarted(self._name)

    async def _run(self) -> tuple[str, float | None]:
        """One run of the process: how it ended, and for how many seconds it was ready, if it was."""
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[str] = loop.create_future()
        self._silent, self._ready_at = 0, None
        self._begun_without = self._unloaded
        options = replace(self._config.options, unloaded=tuple(self._unloaded))
        child = self._child = ChildProcess(replace(self._config, options=options), self._heard, ended.set_result)
        while not (await asyncio.wait({ended}, timeout=self._config.heartbeat))[0]:
            self._count_silence(child)
        self._child, self._hung = None, False
        return ended.result(), None if self._ready_at is None else loop.time() - self._ready_at

    def _count_silence(self, child: ChildProcess) -> None:
        """Counted in turns of this loop: a parent that was stopped itself does not blame its child."""
        self._silent += 1
        seconds = self._silent * self._config.heartbeat
        if seconds > self._timing.silent:
            self._reason = f"gave no sign of life for {self._timing.silent:g} s"
            self._hung = seconds > self._timing.silent + self._timing.closing
            child.kill()

    def _heard(self, message: ToParent) -> None:
        match message:
            case Happened(event):
                self._happened(event)
            case Beat(load):
                self._silent, self._load = 0, load
            case Accepted(number, admitted, load):
                self._load = load
                self._answer(number, admitted)
            case Refused(number, error):
                self._answer(number, error)
            case SubmitFailed(number, text):
                self._answer(number, RuntimeError(text))
            case Settled(number):
                self._answer(number, None)
            case Ready(load):
                self._ready, self._load, self._ready_at = True, load, asyncio.get_running_loop().time()
                self._catch_up()
                if not self._up.done():
                    self._up.set_result(None)
                logger.info("%s: ready", self._name)
            case StartFailed(text, final):
                self._reason, self._final = text, text if final else ""
            case Broken(reason):
                self._reason = reason

    def _happened(self, event: Event | Called) -> None:
        hear(event, self._listeners, self._watchers)

    def _catch_up(self) -> None:
        """Tell the process what has been asked for while it was starting."""
        for model in self._unloaded ^ self._begun_without:
            assert self._child is not None
            self._child.send(SetLoaded(next(self._numbers), model, model not in self._unloaded))

    def _answer(self, number: int, answer: Admitted | Exception | None) -> None:
        _, future = self._answers.get(number, ("", None))
        if future is None or future.done():
            return
        if isinstance(answer, Exception):
            future.set_exception(answer)
        else:
            future.set_result(answer)

    def _gone(self, how: str) -> None:
        """The process has ended: so have its jobs."""
        self._ready, self._load = False, None
        unanswered = {job for job, answer in self._answers.values() if not answer.done()}
        for number in list(self._answers):
            self._answer(number, self._unanswered(how))
        kind: FailedKind = "stopped" if self._closing else "crashed"
        for job in self._listeners.keys() - unanswered:
            self._listeners.pop(job)(Failed(job, kind, f"the process that drew it {how}"))

    def _starting(self) -> RefusedError:
        if self._closing:
            return RefusedError("stopping", "the server stops", self.retry_after)
        return RefusedError("starting", f"{self._name} is being started", self.retry_after)

    def _unanswered(self, how: str) -> RefusedError:
        """For a job that was sent: its process may have begun it, and have ended by it, before its answer was sent."""
        if self._closing:
            return self._starting()
        return RefusedError("crashed", f"the process that it was sent to {how}", self.retry_after)

    def _why(self, how: str) -> str:
        return f"{how} ({self._reason})" if self._reason else how
