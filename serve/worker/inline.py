"""A device in this process, behind the same interface.

For Ray, whose replicas are processes of their own, and for tests. Knows nothing of other devices.
"""

import asyncio
import contextlib
from collections.abc import Callable, Collection, Sequence

from latentrt.serve.messages import (
    Admitted,
    Called,
    DispatcherOptions,
    Event,
    Failed,
    Job,
    ModelSpec,
    RefusedError,
)
from latentrt.serve.service import Load

from .wire import DISPATCHER, dispatcher_named
from .worker import Watchers, hear


class InlineWorker:
    """One device; see `Worker`. It is not started anew: when it cannot go on it is not live any more."""

    def __init__(
        self,
        models: Sequence[ModelSpec],
        options: DispatcherOptions,
        dispatcher: str = DISPATCHER,
        watchers: Watchers | None = None,
    ) -> None:
        """Loads nothing yet. `dispatcher`: "module:name" of its class. Raises `BackendError`."""
        self._models, self._watchers = models, watchers or Watchers()
        self._name = options.shown_name
        self._dispatcher = dispatcher_named(dispatcher)(models, options, self._listen)
        self._listeners: dict[str, Callable[[Event], None]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._up = self._closing = False

    @property
    def models(self) -> Collection[str]:
        """Names of the models that it serves."""
        return [model.name for model in self._models]

    @property
    def ready(self) -> bool:
        """Whether it takes jobs now."""
        return self._up and not self._closing and self.live

    @property
    def live(self) -> bool:
        """False when a call hangs, or the process cannot go on."""
        return self._dispatcher.broken() is None and self._dispatcher.overdue() <= 0

    @property
    def retry_after(self) -> float:
        """A guess: loading is not predicted."""
        return 5.0

    async def start(self) -> None:
        """Load the models; raises `LatentRTError`."""
        self._loop = asyncio.get_running_loop()
        await asyncio.to_thread(self._dispatcher.start)
        self._up = True

    async def submit(self, job: Job, listen: Callable[[Event], None]) -> Admitted:
        """See `Worker`."""
        if not self.ready:
            if self._closing:
                raise RefusedError("stopping", "the server stops", self.retry_after)
            raise RefusedError("starting", f"{self._name} is being started", self.retry_after)
        if job.id in self._listeners:
            raise ValueError(f"the job {job.id} is under way")
        self._listeners[job.id] = listen
        try:
            return await asyncio.shield(submitted := asyncio.ensure_future(self._submit(job)))
        except asyncio.CancelledError:
            # A thread is not stopped by cancelling, so the job may be accepted only now.
            submitted.add_done_callback(lambda _: self._dispatcher.cancel(job.id))
            self._listeners.pop(job.id, None)
            raise
        except BaseException:
            self._listeners.pop(job.id, None)
            raise

    async def _submit(self, job: Job) -> Admitted:
        return await asyncio.to_thread(self._dispatcher.submit, job)

    def cancel(self, job: str) -> None:
        """See `Worker`."""
        self._dispatcher.cancel(job)

    async def set_loaded(self, model: str, loaded: bool) -> None:
        """See `Worker`."""
        await asyncio.to_thread(self._dispatcher.set_loaded(model, loaded))

    def load(self) -> Load:
        """What it does now."""
        return self._dispatcher.load() if self.ready else Load(self._name, False, 0, 0, 0.0)

    async def close(self) -> None:
        """End its threads; jobs that are under way fail."""
        self._closing = True
        await asyncio.to_thread(self._dispatcher.close)
        for job in list(self._listeners):
            self._happened(Failed(job, "stopped", "the server stopped"))

    def kill(self) -> None:
        """Threads cannot be killed."""
        self._closing = True

    def _listen(self, event: Event | Called) -> None:
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
                self._loop.call_soon_threadsafe(self._happened, event)

    def _happened(self, event: Event | Called) -> None:
        hear(event, self._listeners, self._watchers)
