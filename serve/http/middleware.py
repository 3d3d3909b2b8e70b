"""Pure ASGI middleware: limits of bodies, ids of requests. Knows no routes.

Starlette's BaseHTTPMiddleware is not used, as under it `http.disconnect` never arrives.
"""

import asyncio
import logging
import re
import time
from collections.abc import Callable
from uuid import uuid4

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import ApiError, body_of

logger = logging.getLogger(__name__)
_ID = re.compile(rb"[\w.:/+=-]{1,128}")


class BodyLimit:
    """Refuses bodies that are too large or come too slowly: by Content-Length at once, otherwise as they arrive."""

    def __init__(self, app: ASGIApp, *, most: int, seconds: float) -> None:
        self._app, self._most, self._seconds = app, most, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        length = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if not length.isdigit() or int(length) > self._most:
            error = self._too_large()
            headers = {**(error.headers or {}), "Connection": "close"}
            await JSONResponse(body_of(error), error.status_code, headers)(scope, receive, send)
            return
        await self._app(scope, self._limited(receive), send)

    def _limited(self, receive: Receive) -> Receive:
        got, complete, end = 0, False, time.monotonic() + self._seconds

        async def limited() -> Message:
            nonlocal got, complete
            if complete:  # what follows is the client's leaving, which may take any time
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), max(0.001, end - time.monotonic()))
            except TimeoutError:
                raise ApiError(
                    408,
                    f"the body did not arrive within {self._seconds:g} s",
                    "body_timeout",
                    headers={"Connection": "close"},
                ) from None
            got += len(message.get("body", b""))
            if got > self._most:
                raise self._too_large()
            complete = message["type"] != "http.request" or not message.get("more_body", False)
            return message

        return limited

    def _too_large(self) -> ApiError:
        text = f"the body is too large: expected at most {self._most:,} bytes"
        return ApiError(413, text, "body_too_large", headers={"Connection": "close"})


class RequestIds:
    """Gives each request an id, its own if it has a sane one, and passes `traceparent` on; logs what was answered."""

    def __init__(self, app: ASGIApp, *, answered: Callable[[str, int], None]) -> None:
        """`answered` is told path and status of each request, 0 where nothing was sent."""
        self._app, self._answered = app, answered

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"")
        identity = given if _ID.fullmatch(given) else uuid4().hex.encode()
        passed = [(b"x-request-id", identity)]
        if b"traceparent" in headers and len(headers[b"traceparent"]) <= 128:
            passed.append((b"traceparent", headers[b"traceparent"]))
        scope.setdefault("state", {})["request_id"] = identity.decode()
        start, status = time.monotonic(), 0

        async def with_ids(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), *passed]
            await send(message)

        try:
            await self._app(scope, receive, with_ids)
        finally:
            seconds = time.monotonic() - start
            self._answered(scope["path"], status)
            logger.info(
                "%s %s %d in %.3f s",
                scope["method"],
                scope["path"],
                status,
                seconds,
                extra={"request_id": identity.decode()},
            )
