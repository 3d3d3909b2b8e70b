"""Follows a job for a client that waits: all of its pictures, or events as they come; a client that leaves cancels it.

Knows tickets and connections, and no API's form.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from latentrt.serve.messages import Done, Event, Failed, Job, Picture, RefusedError
from latentrt.serve.metrics import Metrics
from latentrt.serve.service import Service, Ticket

from .errors import ApiError, failed

T = TypeVar("T")
# Neither caches nor proxies hold events back.
STREAM_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
CLIENT_GONE = 499  # never sent, as nobody is there; for the log and the metrics


@dataclass(frozen=True, slots=True)
class Drawn:
    """All pictures of a job, in order, and its times."""

    job: Job
    pictures: tuple[Picture, ...]
    done: Done

    def server_timing(self) -> str:
        """The header `Server-Timing`, in milliseconds."""
        stages = ("queue", "encode", "denoise", "decode", "total")
        return ", ".join(f"{name};dur={self.done.timings[name]:.1f}" for name in stages if name in self.done.timings)


async def submitted(service: Service, job: Job, metrics: Metrics) -> Ticket:
    """Submit a job; raises `RefusedError`."""
    try:
        return await service.submit(job)
    except RefusedError as error:
        metrics.observe_refusal(error)
        raise


async def drawn(ticket: Ticket) -> Drawn:
    """Wait for all pictures; raises `ApiError` where the job fails."""
    pictures: dict[int, Picture] = {}
    try:
        async for event in ticket.events():
            match event:
                case Picture():
                    pictures[event.image] = event
                case Failed():
                    raise failed(event)
                case Done():
                    return Drawn(ticket.job, tuple(pictures[image] for image in sorted(pictures)), event)
    except asyncio.CancelledError:
        ticket.cancel()
        raise
    raise ApiError(500, "the job ended without its pictures", "internal_error", retry=False)


async def unless_gone(request: Request, work: Awaitable[Drawn]) -> Drawn:
    """Wait for work, and cancel it where the client leaves; raises `ApiError` 499 then."""
    return await unless_left(client_left(request), work)


async def unless_left(left: Awaitable[None], work: Awaitable[T]) -> T:
    """Wait for work, and cancel it where `left` returns first; raises `ApiError` 499 then."""
    gone, drawing = asyncio.ensure_future(left), asyncio.ensure_future(work)
    try:
        await asyncio.wait({gone, drawing}, return_when=asyncio.FIRST_COMPLETED)
        if not drawing.done():
            raise ApiError(CLIENT_GONE, "the client has closed the connection", "cancelled")
        return drawing.result()
    finally:
        gone.cancel()
        drawing.cancel()


async def client_left(request: Request) -> None:
    """Returns when the client has closed the connection; the body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


class EventResponse(StreamingResponse):
    """Events of a job as they come, written in an API's form. A client that leaves cancels the job."""

    def __init__(self, ticket: Ticket, written: Callable[[Event], Awaitable[str | None]]) -> None:
        """`written`: an event as text, or None for those that the API does not have."""
        super().__init__(_texts(ticket, written), media_type="text/event-stream", headers=STREAM_HEADERS)
        self._ticket = ticket

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        try:
            await super().__call__(scope, receive, send)
        finally:  # also where the client left before the first event; does nothing for a job that is over
            self._ticket.cancel()


async def _texts(ticket: Ticket, written: Callable[[Event], Awaitable[str | None]]) -> AsyncIterator[str]:
    async for event in ticket.events():
        if (text := await written(event)) is not None:
            yield text
