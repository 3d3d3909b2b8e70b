"""Runs a server: uvicorn, the devices, and how both begin and end. Knows signals; knows no routes and no models.

The first SIGTERM or SIGINT drains: nothing new is accepted, the listener stays open and says so, what was accepted is
finished. The second one ends everything at once.
"""

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import uvicorn

from latentrt.runtime.errors import BackendError
from latentrt.serve.worker.fleet import Fleet

from .settings import Settings
from .sockets import bound_socket, protocol_with

logger = logging.getLogger(__name__)

CANNOT_GO_ON = 70
_HEADER_BYTES = 32 * 1024
_LAST_ANSWERS = 10  # seconds for answers that are being sent when all work is done
_LOOK_EVERY = 1.0  # seconds, at whether the devices can go on
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True, slots=True)
class App:
    """What uvicorn runs.

    Attributes:
        asgi: the app.
        stops: called with seconds when the server is told to stop, before its devices are; each returns when the work
            that it keeps is done or put aside. `Fleet.for_accepted_work` still draws meanwhile.
    """

    asgi: Any
    stops: Sequence[Callable[[float], Awaitable[None]]] = ()


class _Uvicorn(uvicorn.Server):
    """uvicorn without its handlers of signals, as it closes the listener at the first one."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the app and listen. Raises `BackendError` instead of ending the process."""
        try:
            await super().startup(sockets)
        except SystemExit as error:
            raise BackendError("the server cannot start; the log says why") from error


class Server:
    """One server, for one run."""

    def __init__(self, settings: Settings, fleet: Fleet, app: App, tell: Callable[[str], None]) -> None:
        """Bind the socket; raises `InputError`. `tell` shows a line to whoever started the server."""
        self._settings, self._fleet, self._app, self._tell = settings, fleet, app, tell
        self._socket, self.address = bound_socket(settings.host, settings.port, settings.uds)
        self._http = _Uvicorn(_config(settings, app))
        self._told = False  # to stop
        self._stop: asyncio.Event

    async def run(self) -> int:
        """Serve until a signal comes; the exit status. Raises `LatentRTError` where the models cannot be loaded."""
        self._stop = asyncio.Event()
        with _handled(self._signalled), self._socket:
            starting = asyncio.create_task(self._fleet.start())
            try:
                return await self._serve(starting)
            finally:
                self._fleet.kill()
                starting.cancel()
                _unlink(self._settings.uds)

    async def _serve(self, starting: asyncio.Task[None]) -> int:
        if self._settings.preload and not await self._loaded(starting):
            await self._fleet.stop(0)
            return 0
        http = asyncio.create_task(self._http.serve(sockets=[self._socket]))
        while not self._http.started and not http.done():
            await asyncio.sleep(0.01)
        status = 1
        try:
            if not http.done():
                self._tell(f"latentrt listens at {self.address}")
                status = await self._until_told(starting, http)
                await self._drain()
        finally:
            self._http.should_exit = True
            await asyncio.wait({http})
        http.result()
        return status

    async def _loaded(self, starting: asyncio.Task[None]) -> bool:
        """Wait for the models; False where the server is told to stop before."""
        stop = asyncio.create_task(self._stop.wait())
        await asyncio.wait({starting, stop}, return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if starting.done() and not self._stop.is_set():
            starting.result()
        return not self._stop.is_set()

    async def _until_told(self, starting: asyncio.Task[None], http: asyncio.Task[None]) -> int:
        """Wait for a signal, or for what cannot be mended; the exit status."""
        stop = asyncio.create_task(self._stop.wait())
        waiting: set[asyncio.Task[Any]] = {stop, http, starting}
        try:
            while True:
                await asyncio.wait(waiting, timeout=_LOOK_EVERY, return_when=asyncio.FIRST_COMPLETED)
                if stop.done():
                    return 0
                if http.done():
                    return 1
                if starting.done() and starting in waiting:
                    waiting.remove(starting)
                    starting.result()
                    self._tell(f"latentrt is ready: {', '.join(self._fleet.models)}")
                if not self._fleet.live():
                    logger.critical("a device cannot be started any more: the server ends")
                    return CANNOT_GO_ON
        finally:
            stop.cancel()

    async def _drain(self) -> None:
        """Finish what was accepted, while the listener says that nothing more is."""
        loop, seconds = asyncio.get_running_loop(), self._settings.drain_seconds
        end = loop.time() + seconds
        self._fleet.refuse()
        if self._fleet.accepted:
            self._tell(f"latentrt finishes {self._fleet.accepted} jobs; a second signal stops at once")
        await asyncio.gather(asyncio.sleep(self._settings.grace_seconds), *(stop(seconds) for stop in self._app.stops))
        await self._fleet.stop(max(0.0, end - loop.time()))

    def _signalled(self, number: int) -> None:
        """In the main thread, between two instructions of whatever it does."""
        if self._told:
            self._stop_at_once(number)
        self._told = True
        asyncio.get_running_loop().call_soon_threadsafe(self._stop.set)

    def _stop_at_once(self, number: int) -> NoReturn:
        self._fleet.kill()
        _unlink(self._settings.uds)
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(128 + number)


def _config(settings: Settings, app: App) -> uvicorn.Config:
    return uvicorn.Config(
        app.asgi,
        loop="asyncio",
        http=protocol_with(settings.request_timeout),
        ws="none",
        interface="asgi3",
        log_config=None,
        access_log=False,  # the app has one, with the ids of requests
        proxy_headers=bool(settings.proxies),
        forwarded_allow_ips=list(settings.proxies),
        server_header=False,
        timeout_keep_alive=round(settings.keep_alive),
        timeout_graceful_shutdown=_LAST_ANSWERS,
        h11_max_incomplete_event_size=_HEADER_BYTES,
    )


@contextmanager
def _handled(handler: Callable[[int], None]) -> Iterator[None]:
    """Signals go to the handler inside the block, whoever had them before."""

    def handle(number: int, _: FrameType | None) -> None:
        handler(number)

    before = {number: signal.signal(number, handle) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def _unlink(path: Path | None) -> None:
    if path is not None:
        with suppress(OSError):
            path.unlink()
