"""An instance of a model in Triton's process of it: a device with its dispatcher, and an event loop that answers.

Knows settings and threads, and nothing of Triton's modules.
"""

import asyncio
import logging
import os
import threading
from collections.abc import Callable
from dataclasses import replace

from latentrt.serve.http.bodies import CallReader
from latentrt.serve.http.config import HttpConfig
from latentrt.serve.settings import Settings
from latentrt.serve.wiring import children_of, models_of
from latentrt.serve.worker.fleet import Fleet
from latentrt.serve.worker.inline import InlineWorker
from latentrt.serve.worker.worker import Watchers

from .calls import Face, Received, Sender
from .errors import TritonError, triton_error

logger = logging.getLogger(__name__)
CANNOT_GO_ON = 70
_WATCH_EVERY = 0.5  # seconds


def _end_process() -> None:
    """Without the destructors of native libraries, which may hang; Triton starts the process anew."""
    logging.shutdown()
    os._exit(CANNOT_GO_ON)


class Instance:
    """One device and one model. Thread-safe."""

    def __init__(
        self,
        settings: Settings,
        device: str | None,
        *,
        progress: bool,
        watchers: Watchers | None = None,
        end_process: Callable[[], None] = _end_process,
    ) -> None:
        """Loads nothing yet; raises `LatentRTError`.

        Args:
            settings: with one model.
            device: as for `Pipeline.load`.
            progress: whether requests may have several responses.
            watchers: of UNet calls.
            end_process: what to do when the device hangs or cannot go on.
        """
        # All clients are one here, and share what may wait.
        settings = replace(settings, devices=(device,) if device else (), client_jobs=settings.max_queue)
        self._drain_seconds, self._end_process = settings.drain_seconds, end_process
        models, (child,) = models_of(settings), children_of(settings)
        config = HttpConfig(
            prompt_bytes=settings.prompt_bytes,
            picture_pixels=settings.picture_pixels,
            log_prompts=settings.log_prompts,
        )
        worker = InlineWorker(child.models, child.options, watchers=watchers)
        self._fleet = Fleet(models, [worker], client_jobs=settings.client_jobs)
        self._reader = CallReader(models, config)
        self._face = Face(self._fleet, next(iter(models.values())), self._reader, progress=progress)
        self._answers: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="answers", daemon=True)

    def start(self) -> None:
        """Load the model; returns when it takes requests. Raises `LatentRTError`."""
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result()

    async def _start(self) -> None:
        await self._fleet.start()
        self._watching = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        while self._fleet.live():
            await asyncio.sleep(_WATCH_EVERY)
        logger.error("this process cannot go on: a call of the device hangs, or it has failed for good")
        self._end_process()

    def answer(self, received: Received, sender: Sender, fail: Callable[[TritonError], None]) -> None:
        """Begin to answer a request; returns at once. `fail` sends a final response that is an error."""
        self._loop.call_soon_threadsafe(self._begin, received, sender, fail)

    def _begin(self, received: Received, sender: Sender, fail: Callable[[TritonError], None]) -> None:
        task = self._loop.create_task(self._answered(received, sender, fail))
        self._answers.add(task)
        task.add_done_callback(self._answers.discard)

    async def _answered(self, received: Received, sender: Sender, fail: Callable[[TritonError], None]) -> None:
        try:
            await self._face.answer(received, sender)
        except Exception as error:
            told = triton_error(error)
            if told.code == "INTERNAL":
                logger.exception("a request has failed")
            await self._reader.answered(lambda: fail(told))

    def stop(self) -> None:
        """Finish what was accepted, for as long as the settings allow, and end the device."""
        if self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
        self._reader.close()
        self._loop.close()

    async def _stop(self) -> None:
        self._watching.cancel()
        await self._fleet.stop(self._drain_seconds)
        await asyncio.gather(*self._answers, return_exceptions=True)
