"""Pure ASGI middleware: limits of bodies, ids of requests. Knows no routes.

Starlette's BaseHTTPMiddleware is not used, as under it `http.disconnect` never arrives.
"""

import asyncio
import logging
import re
import time
import traceback
from collections.abc import Callable, Collection
from contextlib import suppress
from uuid import uuid4

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import ApiError, as_api_error, error_response

logger = logging.getLogger(__name__)
LINGER_SECONDS, LINGER_BYTES = 2.0, 64 << 20  # that the rest of a refused body is read for, and how much of it
_ID = re.compile(rb"[\w.:/+=-]{1,128}")


class Failures:
    """Answers what nobody expected: the client learns nothing of the inside, the log where it happened."""

    def __init__(self, app: ASGIApp, *, log_messages: bool) -> None:
        """`log_messages`: also those of exceptions, which may quote a prompt."""
        self._app, self._log_messages = app, log_messages

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        begun = False

        async def noted(message: Message) -> None:
            nonlocal begun
            begun = begun or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, noted)
        except ClientDisconnect:  # while its body was read
            return
        except Exception as error:
            if scope["type"] != "http":
                raise
            self._log(error, scope)
            if begun:
                return  # the connection is closed then, so that nobody takes a part for the whole
            await error_response(as_api_error(error), scope)(scope, receive, send)

    def _log(self, error: Exception, scope: Scope) -> None:
        lines = traceback.format_exception(error) if self._log_messages else traceback.format_tb(error.__traceback__)
        identity = scope.get("state", {}).get("request_id")
        logger.error(
            "%s in the request %s\n%s",
            type(error).__name__,
            identity,
            "".join(lines).rstrip(),
            extra={"request_id": identity},
        )


class HeadAsGet:
    """Answers HEAD as GET, for probes and load balancers; the server leaves the body out."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        await self._app({**scope, "method": "GET"} if scope.get("method") == "HEAD" else scope, receive, send)


class BodyLimit:
    """Refuses bodies that are compressed, too large, or come too slowly.

    Those that are too large by Content-Length are refused at once, others as they arrive.

    Bodies count until their requests are answered, as they are in memory until then.
    """

    def __init__(self, app: ASGIApp, *, most: int, together: int, seconds: float) -> None:
        """`together`: bytes of all bodies at a time."""
        self._app, self._most, self._together, self._seconds = app, most, max(most, together), seconds
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        coding = next((value for name, value in scope["headers"] if name == b"content-encoding"), b"identity")
        if coding not in (b"", b"identity"):
            text = f"a body in the coding {coding[:40].decode('latin-1')!r} is not read: send it as it is"
            error = ApiError(415, text, "unsupported_encoding", headers={"Connection": "close"})
            await error_response(error, scope)(scope, receive, send)
            return
        length = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if not length.isdigit() or int(length) > self._most:
            error = self._too_large()
            answer = error_response(error, scope)
            waits = any(name == b"expect" for name, _ in scope["headers"])  # a body that is not asked for never comes
            await answer(scope, receive, send if waits else _lingering(receive, send, lambda: True))
            return
        got, refused = 0, False

        def count(size: int) -> None:
            nonlocal got, refused
            got += size
            self._held += size
            refused = got > self._most or self._held > self._together
            if got > self._most:
                raise self._too_large()
            if refused:
                text = "the server reads too many large bodies: try again"
                raise ApiError(429, text, "server_busy", retry=True, retry_after=2, headers={"Connection": "close"})

        try:
            await self._app(scope, self._limited(receive, count), _lingering(receive, send, lambda: refused))
        finally:
            self._held -= got

    def _limited(self, receive: Receive, count: Callable[[int], None]) -> Receive:
        complete, end = False, time.monotonic() + self._seconds

        async def limited() -> Message:
            nonlocal complete
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
            count(len(message.get("body", b"")))
            complete = message["type"] != "http.request" or not message.get("more_body", False)
            return message

        return limited

    def _too_large(self) -> ApiError:
        text = f"the body is too large: expected at most {self._most:,} bytes"
        return ApiError(413, text, "body_too_large", headers={"Connection": "close"})


def _lingering(receive: Receive, send: Send, refused: Callable[[], bool]) -> Send:
    """Sends an answer; if the body was refused, drops what still comes of it before the connection is closed.

    Closed at once, the system resets the connection, and clients that are still sending never see the answer.
    """

    async def drop() -> None:
        dropped, more = 0, True
        while more and dropped < LINGER_BYTES:
            message = await receive()
            dropped, more = dropped + len(message.get("body", b"")), message.get("more_body", False)

    async def lingering(message: Message) -> None:
        last = message["type"] == "http.response.body" and not message.get("more_body", False)
        if last and refused():
            await send({**message, "more_body": True})
            with suppress(TimeoutError):
                await asyncio.wait_for(drop(), LINGER_SECONDS)
            message = {"type": "http.response.body", "body": b""}
        await send(message)

    return lingering


class OwnPages:
    """Refuses requests of pages from other origins, which a browser sends along without asking its user.

    Without keys, any page could otherwise make a server on the same machine work.
    """

    def __init__(self, app: ASGIApp, *, allowed: Collection[str]) -> None:
        """`allowed`: origins that may call; "*" for all."""
        self._app, self._allowed = app, allowed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        headers = dict(scope.get("headers", ()))
        origin = headers.get(b"origin", b"").decode("latin-1")
        host = headers.get(b"host", b"").decode("latin-1")
        own = not origin or origin.partition("://")[2] == host
        if scope["type"] != "http" or own or origin in self._allowed or "*" in self._allowed:
            await self._app(scope, receive, send)
            return
        text = f"pages of {origin[:100]} may not call this server: see --cors"
        error = ApiError(403, text, "origin_not_allowed")
        await error_response(error, scope)(scope, receive, send)


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
            self._answered(scope["path"].removeprefix(scope.get("root_path", "")), status)
            logger.info(
                "%s %s %d in %.3f s",
                scope["method"],
                scope.get("raw_path", b"").decode("ascii", "backslashreplace"),  # decoded, it may have line breaks
                status,
                seconds,
                extra={"request_id": identity.decode()},
            )
