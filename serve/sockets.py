"""The socket that the server listens at, and connections that must send their headers in time. Knows no app."""

import asyncio
import errno
import socket
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from latentrt.runtime.errors import InputError


def bound_socket(host: str, port: int, uds: Path | None) -> tuple[socket.socket, str]:
    """A bound socket that does not listen yet, and its address for people. Raises `InputError` where it cannot be had.

    Args:
        port: 0 is a free one.
        uds: a Unix socket instead.
    """
    if uds is not None:
        return _unix_socket(uds), f"unix:{uds}"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        result = socket.socket(family, kind, protocol)
        result.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        result.bind(address)
    except OSError as error:
        hint = "; --port takes another one, 0 a free one" if error.errno == errno.EADDRINUSE else ""
        raise InputError(f"cannot listen at {host}:{port}: {error.strerror or error}{hint}") from error
    shown_host = f"[{host}]" if ":" in host else host
    return result, f"http://{shown_host}:{result.getsockname()[1]}"


def _unix_socket(path: Path) -> socket.socket:
    result = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.exists() and stat.S_ISSOCK(path.stat().st_mode) and not _is_answered(path):
            path.unlink()  # of a server that was killed
        result.bind(str(path))
        path.chmod(0o666)  # as everyone on this machine may connect to a port too
    except OSError as error:
        result.close()
        raise InputError(f"cannot listen at {path}: {error.strerror or error}") from error
    return result


def _is_answered(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        return probe.connect_ex(str(path)) != errno.ECONNREFUSED


class TimedProtocol(H11Protocol):
    """HTTP/1.1 by h11, which limits the size of headers; they must come within `seconds`, too."""

    seconds = 30.0
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """A client has connected."""
        super().connection_made(transport)
        self._expect_headers()

    def data_received(self, data: bytes) -> None:
        """Part of a request."""
        super().data_received(data)
        if self.conn.their_state is h11.IDLE:
            self._expect_headers()
        else:
            self._forget_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection has ended."""
        self._forget_timer()
        super().connection_lost(exc)

    def _expect_headers(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(self.seconds, self._too_late)

    def _forget_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_late(self) -> None:
        with suppress(AttributeError, RuntimeError):  # it is being closed already
            self.transport.abort()


def protocol_with(seconds: float) -> type[TimedProtocol]:
    """The protocol with this time for headers."""
    return type("TimedProtocol", (TimedProtocol,), {"seconds": seconds})
