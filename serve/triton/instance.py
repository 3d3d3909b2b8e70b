"""An instance of a model: a device in a process of its own, and an event loop that answers for it.

Triton does not start a Python model anew whose process has ended, and leaves its clients waiting. So what may crash or
hang runs in a child of that process, as at `latentrt serve`. Knows nothing of Triton's modules.
"""

import asyncio
import logging
import sys
import threading
from collections.abc import Callable
from dataclasses import replace

from latentrt.runtime.errors import BackendError
from latentrt.serve.http.bodies import CallReader
from latentrt.serve.http.config import HttpConfig
from latentrt.serve.settings import Settings
from latentrt.serve.wiring import children_of, models_of
from latentrt.serve.worker.fleet import Fleet
from latentrt.serve.worker.process import WorkerProcess
from latentrt.serve.worker.wire import ChildConfig
from latentrt.serve.worker.worker import Worker

from .calls import Face, Received, Sender
from .errors import TritonError, triton_error

logger = logging.getLogger(__name__)
_LAST = 1.0  # seconds, for what is left when a model is unloaded
Fail = Callable[[TritonError], None]


class Instance:
    """One device and one model. Thread-safe."""

    def __init__(
        self,
        settings: Settings,
        device: str | None,
        *,
        progress: bool,
        worker: Callable[[ChildConfig], Worker] = WorkerProcess,
    ) -> None:
        """Loads nothing yet; raises `LatentRTError`.

        Args:
            settings: with one model.
            device: as for `Pipeline.load`.
            progress: whether requests may have several responses.
            worker: makes the device.
        """
        if not sys.executable:  # as in a program that embeds Python and finds none in PATH
            raise BackendError("no Python is found: put the folder of that one into PATH which has latentrt")
        # All clients are one here, and share what may wait.
        settings = replace(settings, devices=(device,) if device else (), client_jobs=settings.max_queue)
        models, (child,) = models_of(settings), children_of(settings)
        config = HttpConfig(
            prompt_bytes=settings.prompt_bytes,
            picture_pixels=settings.picture_pixels,
            log_prompts=settings.log_prompts,
        )
        self._drain_seconds = settings.drain_seconds
        self._fleet = Fleet(models, [worker(child)], client_jobs=settings.client_jobs)
        self._reader = CallReader(models, config)
        self._face = Face(self._fleet, next(iter(models.values())), self._reader, progress=progress)
        self._answers: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="answers", daemon=True)

    def start(self) -> None:
        """Load the model; returns when it takes requests. Raises `LatentRTError`, and is over then."""
        self._thread.start()
        try:
            asyncio.run_coroutine_threadsafe(self._fleet.start(), self._loop).result()
        except BaseException:
            self._end()
            raise

    def answer(self, received: Received, sender: Sender, fail: Fail) -> None:
        """Begin to answer a request; returns at once. `fail` sends a final response that is an error."""
        self._loop.call_soon_threadsafe(self._begin, received, sender, fail)

    def _begin(self, received: Received, sender: Sender, fail: Fail) -> None:
        task = self._loop.create_task(self._answered(received, sender, fail))
        self._answers.add(task)
        task.add_done_callback(self._answers.discard)

    async def _answered(self, received: Received, sender: Sender, fail: Fail) -> None:
        try:
            await self._face.answer(received, sender)
        except Exception as error:
            told = triton_error(error)
            if told.code == "INTERNAL":
                logger.exception("a request has failed")
            await self._reader.answered(lambda: fail(told))

    def stop(self) -> None:
        """Finish what was accepted, for as long as the settings allow, and end the device."""
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()
        self._end()

    async def _stop(self) -> None:
        if self._answers:
            await asyncio.wait(self._answers, timeout=self._drain_seconds)
        await self._fleet.stop(_LAST)
        await asyncio.gather(*self._answers, return_exceptions=True)

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._reader.close()
