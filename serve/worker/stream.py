"""The events of one job, between the device that makes them and the reader who may be slow. Bounded."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

from latentrt.serve.messages import Done, Event, Failed, Preview, Progress


class EventStream:
    """Of each image only the newest progress and the newest preview wait; pictures and the end always come.

    Used from one event loop.
    """

    def __init__(self) -> None:
        """Without events."""
        self._waiting: dict[object, Event] = {}  # in the order in which they are read
        self._more, self._over = asyncio.Event(), asyncio.Event()
        self._ended = False
        self._count = 0

    @property
    def ended(self) -> bool:
        """Whether `Done` or `Failed` has been put."""
        return self._ended

    def put(self, event: Event) -> None:
        """Add an event; ignored after the end."""
        if self._ended:
            return
        self._ended = isinstance(event, Done | Failed)
        key: object = (type(event), event.image) if isinstance(event, Progress | Preview) else self._count
        self._count += 1
        self._waiting.pop(key, None)  # the newer one comes after what happened before it
        self._waiting[key] = event
        self._more.set()
        if self._ended:
            self._over.set()

    async def read_batches(self, pause: float) -> AsyncIterator[list[Event]]:
        """All that waits, at most once in `pause` seconds but at once at the end. For one reader, instead of `read`."""
        while True:
            await self._more.wait()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._over.wait(), pause)
            self._more.clear()
            events, self._waiting = list(self._waiting.values()), {}
            yield events
            if self._ended:
                return

    async def read(self) -> AsyncIterator[Event]:
        """Events, until the end. For one reader."""
        while True:
            await self._more.wait()
            while self._waiting:
                event = self._waiting.pop(next(iter(self._waiting)))
                yield event
                if isinstance(event, Done | Failed):
                    return
            self._more.clear()
