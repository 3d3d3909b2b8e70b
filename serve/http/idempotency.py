"""Answers that are kept for requests with an `Idempotency-Key`: a client that lost the answer asks again and gets it.

The same key with another body is refused. While the first request is still drawn, the second one waits for it. Only
successes are kept: after an error, the same key draws again. Knows no routes.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from starlette.responses import Response

from .errors import ApiError

KEPT = 1000
KEPT_BYTES = 256 << 20


@dataclass(slots=True, eq=False)
class _Entry:
    body: bytes  # its hash
    answer: "asyncio.Task[Response]"
    began: float


class Idempotency:
    """The kept answers of one server, for `seconds`. Used from one event loop."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds, self._clock = seconds, clock
        self._entries: OrderedDict[tuple[str, str], _Entry] = OrderedDict()

    async def answer(self, client: str, key: str, body: bytes, make: Callable[[], Awaitable[Response]]) -> Response:
        """The answer for a key, made now if there is none. `body`: the hash of the request's body.

        The answer is made to its end also when the client is gone. Raises `ApiError` 409 for another body.
        """
        self._forget()
        found = self._entries.get((client, key))
        if found is None:
            task = asyncio.ensure_future(make())
            found = self._entries[client, key] = _Entry(body, task, self._clock())
            task.add_done_callback(lambda done: self._made(client, key, done))
        elif found.body != body:
            raise key_reused()
        response = await asyncio.shield(found.answer)
        return Response(response.body, response.status_code, dict(response.headers), response.media_type)

    def _made(self, client: str, key: str, task: "asyncio.Task[Response]") -> None:
        if not _succeeded(task) or task.result().status_code >= 300:
            self._entries.pop((client, key), None)

    def _forget(self) -> None:
        """Old answers, and more than are kept."""
        done = [(name, entry) for name, entry in self._entries.items() if _succeeded(entry.answer)]
        size = sum(len(entry.answer.result().body) for _, entry in done)
        for name, entry in done:
            if self._clock() - entry.began > self.seconds or len(self._entries) > KEPT or size > KEPT_BYTES:
                size -= len(entry.answer.result().body)
                del self._entries[name]


def key_reused() -> ApiError:
    """The answer to another body under a known key."""
    text = "this Idempotency-Key was used for another request: use a new key"
    return ApiError(409, text, "idempotency_key_reused", retry=False)


def _succeeded(task: "asyncio.Task[Response]") -> bool:
    return task.done() and not task.cancelled() and task.exception() is None
