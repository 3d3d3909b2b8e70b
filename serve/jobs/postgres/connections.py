"""Connections to PostgreSQL, one a thread: made anew when they break, given up when they hang. Knows no tables."""

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import DictRow, dict_row

from latentrt.serve.jobs.store import StateError

CONNECT_SECONDS = 5
OPERATION_SECONDS = 10.0  # an operation that takes longer is given up: the network may be gone without a word
_PAUSE, _LONGEST_PAUSE = 0.1, 2.0  # seconds without a try after one that failed
_DEFAULTS = {"application_name": "latentrt", "connect_timeout": CONNECT_SECONDS, "target_session_attrs": "read-write"}

Connection = psycopg.Connection[DictRow]


class Connections:
    """The connections of a store."""

    def __init__(self, url: str, schema: str) -> None:
        """`url`: never shown, as it may hold a password. Raises `StateError` where it is none."""
        try:
            self._options = {**_DEFAULTS, **conninfo_to_dict(url)}
        except psycopg.Error:  # its text repeats parts of the address
            raise StateError(
                "the address of the state cannot be read: expected postgresql://USER:PASSWORD@HOST:PORT/DATABASE, with "
                "%xx for special characters of the parts"
            ) from None
        # A server that stops in the middle of a transaction must not keep its locks from all others.
        self._setup = (
            f'SET search_path TO "{schema}"; SET statement_timeout TO {round(OPERATION_SECONDS * 1000)}; '
            f"SET idle_in_transaction_session_timeout TO {round(OPERATION_SECONDS * 1000)}"
        )
        self._own = threading.local()
        self._lock = threading.Lock()
        self._lines: set[_Line] = set()
        self._failure, self._pause, self._next_try = "", _PAUSE, 0.0

    @contextmanager
    def connected(self) -> Iterator[Connection]:
        """This thread's connection; each statement commits by itself. Raises `psycopg.Error`."""
        line = self._line()
        with line.cut_after(OPERATION_SECONDS):
            yield line.connection

    @contextmanager
    def listening(self, channel: str) -> Iterator[tuple[Connection, bool]]:
        """This thread's connection, which hears a channel; and whether it has heard nothing until now."""
        line = self._line()
        is_new = not line.listens
        if is_new:
            with line.cut_after(OPERATION_SECONDS):
                line.connection.execute(f'LISTEN "{channel}"')
            line.listens = True
        yield line.connection, is_new

    def _line(self) -> "_Line":
        line: _Line | None = getattr(self._own, "line", None)
        if line is not None and line.is_good():
            return line
        self._own.line = None
        with self._lock:
            if line is not None:
                self._lines.discard(line)
                line.close()
            if time.monotonic() < self._next_try:
                raise psycopg.OperationalError(self._failure)
        try:
            line = _Line(self._options, self._setup)
        except psycopg.Error as error:
            with self._lock:
                self._failure = " ".join(str(error).split())
                self._next_try = time.monotonic() + self._pause
                self._pause = min(2 * self._pause, _LONGEST_PAUSE)
            raise
        with self._lock:
            self._pause, self._next_try = _PAUSE, 0.0
            self._lines.add(line)
        self._own.line = line
        return line

    def close(self) -> None:
        """Close all of them; no thread uses one any more."""
        with self._lock:
            for line in self._lines:
                line.close()
            self._lines.clear()


class _Line:
    """One connection, and a handle of its socket by which another thread can end what hangs."""

    def __init__(self, options: dict[str, Any], setup: str) -> None:
        self.connection = psycopg.connect(**options, autocommit=True, row_factory=dict_row)
        self.listens = False
        self._socket = socket.socket(fileno=os.dup(self.connection.fileno()))
        try:
            with self.cut_after(CONNECT_SECONDS):
                self.connection.execute(setup)
        except BaseException:
            self.close()
            raise

    def is_good(self) -> bool:
        """Whether it can be used. One that has something to say without being asked says that its server has ended."""
        if self.connection.closed or self.listens:
            return not self.connection.closed
        with suppress(BlockingIOError):
            self._socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
            return False
        return True

    @contextmanager
    def cut_after(self, seconds: float) -> Iterator[None]:
        timer = threading.Timer(seconds, self._cut)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _cut(self) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with suppress(psycopg.Error):
            self.connection.close()
        self._socket.close()
