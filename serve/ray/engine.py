"""A replica of the engine: one device with the dispatcher inside, in the replica's own process.

Knows neither Ray nor HTTP.
"""

import logging
import os
import threading
import time
from collections.abc import AsyncGenerator, Sequence

from latentrt.serve.messages import DispatcherOptions, Job, ModelSpec, RefusedError
from latentrt.serve.service import Load
from latentrt.serve.worker.inline import InlineWorker
from latentrt.serve.worker.stream import EventStream
from latentrt.serve.worker.wire import DISPATCHER
from latentrt.serve.worker.worker import Watchers

from .engines import Message

logger = logging.getLogger(__name__)

# Seconds between two messages of a job. Ray buffers what its reader has not taken, so this and the stream, which keeps
# the newest progress and preview of each image alone, bound it.
PAUSE = 0.05
CANNOT_GO_ON = 70
_WATCH_EVERY = 0.2  # seconds


class DeviceLostError(Exception):
    """The device cannot go on; the replica has to be started anew."""


class Engine:
    """One device. Used from one event loop."""

    def __init__(
        self,
        models: Sequence[ModelSpec],
        options: DispatcherOptions,
        *,
        watchers: Watchers | None = None,
        dispatcher: str = DISPATCHER,
    ) -> None:
        """Loads nothing yet; see `InlineWorker`."""
        self._worker = InlineWorker(models, options, dispatcher, watchers)

    async def start(self) -> None:
        """Load, warm up and measure; raises `LatentRTError`."""
        await self._worker.start()

    async def draw(self, job: Job) -> AsyncGenerator[Message, None]:
        """Draw a job; see `Message`. Closing the iterator cancels it."""
        stream = EventStream()
        try:
            admitted = await self._worker.submit(job, stream.put)
        except RefusedError as error:
            yield error
            return
        try:
            yield admitted
            async for events in stream.read_batches(PAUSE):
                yield events
        finally:
            self._worker.cancel(job.id)  # does nothing where it is over

    def load(self) -> Load:
        """What the device does now."""
        return self._worker.load()

    def end_with_device(self) -> None:
        """End this process when the device hangs or cannot go on, in a thread of its own.

        Ray would first wait for several failed health checks, and then for requests that never end.
        """
        threading.Thread(target=self._watch, name="latentrt-watch", daemon=True).start()

    def _watch(self) -> None:
        while self._worker.live:
            time.sleep(_WATCH_EVERY)
        logger.critical("the device hangs or cannot go on: this replica ends")
        logging.shutdown()
        os._exit(CANNOT_GO_ON)  # without the destructors of native libraries, which may hang

    def check(self) -> None:
        """Raise `DeviceLostError` where a call hangs, or the dispatcher cannot go on."""
        if not self._worker.live:
            raise DeviceLostError("the device hangs or cannot go on: this replica has to be started anew")
