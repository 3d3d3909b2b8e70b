"""Replicas of the engine in this process, behind the seam that Ray is behind otherwise, and what can go wrong there."""

import asyncio
import contextvars
from collections.abc import AsyncIterator
from contextlib import aclosing

from latentrt.serve.messages import DispatcherOptions, Job, ModelSpec, RefusedError
from latentrt.serve.ray.engine import Engine
from latentrt.serve.ray.engines import LostError, Message
from latentrt.serve.service import Load

from .fake_dispatcher import NAME

# As Ray's, by which it knows what a request has called.
of_request: contextvars.ContextVar[str | None] = contextvars.ContextVar("of_request", default=None)


def engine(does: str = "", *, max_queue: int = 1000) -> Engine:
    """On a fake dispatcher."""
    options = DispatcherOptions(device="cpu", loader=does, max_queue=max_queue)
    return Engine([ModelSpec("shapes")], options, dispatcher=NAME)


class LocalDraw:
    """See `Draw`. Messages wait without bound, as Ray's do."""

    def __init__(self, engine: Engine, job: Job, engines: "LocalEngines") -> None:
        self._engine, self._job, self._engines = engine, job, engines
        self._waiting: asyncio.Queue[Message | BaseException | None] = asyncio.Queue()
        self.cancelled = False
        self.sent = 0
        self._task = asyncio.create_task(self._draw())

    async def messages(self) -> AsyncIterator[Message]:
        while (message := await self._waiting.get()) is not None:
            if isinstance(message, BaseException) and not isinstance(message, RefusedError):
                raise message
            yield message

    def cancel(self) -> None:
        self.cancelled = True
        self._task.cancel()
        self._waiting.put_nowait(LostError("cancelled"))

    def lose(self, error: BaseException) -> None:
        """As if its replica had died."""
        self._task.cancel()
        self._waiting.put_nowait(error)

    async def _draw(self) -> None:
        await self._engines.room.wait()
        async with aclosing(self._engine.draw(self._job)) as messages:
            async for message in messages:
                self.sent += 1
                self._waiting.put_nowait(message)
        self._waiting.put_nowait(None)


class LocalEngines:
    """See `Engines`: one replica. `room`: whether it takes jobs; `gone`: whether it does not answer."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.draws: list[LocalDraw] = []
        self.contexts: list[str | None] = []
        self.room = asyncio.Event()
        self.room.set()
        self.gone = False
        self._started = False

    def draw(self, job: Job) -> LocalDraw:
        self.contexts.append(of_request.get())
        self.draws.append(LocalDraw(self.engine, job, self))
        return self.draws[-1]

    async def loads(self) -> list[Load]:
        if self.gone:
            raise LostError("gone")
        if not self._started:  # in the event loop of the service
            self._started = True
            await self.engine.start()
        return [self.engine.load()]
