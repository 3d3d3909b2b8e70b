"""A readers-writer lock whose holders are not threads, as generators move between threads."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from .errors import InputError


class SharedLock:
    """A readers-writer lock. New readers wait for a waiting writer, but only for a while.

    A generator that holds it may be paused, go on in another thread, and acquire it once more meanwhile. So nobody
    waits without limit: readers go ahead after `patience` seconds, unless a writer is at work.
    """

    def __init__(self, patience: float = 2.0) -> None:
        self._changed = threading.Condition()
        self._readers = self._waiting = 0
        self._writing = False
        self._patience = patience

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Acquire for reading."""
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting, self._patience)
            self._changed.wait_for(lambda: not self._writing)
            self._readers += 1
        try:
            yield
        finally:
            with self._changed:
                self._readers -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self, busy: str, timeout: float | None = None) -> Iterator[None]:
        """Acquire for writing. Raises `InputError(busy)` if readers have not ended after `timeout` seconds."""
        end = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            self._waiting += 1
            try:
                left = None if end is None else max(0.0, end - time.monotonic())
                if not self._changed.wait_for(lambda: not self._readers and not self._writing, left):
                    raise InputError(busy)
                self._writing = True
            finally:
                self._waiting -= 1
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._writing = False
                self._changed.notify_all()
