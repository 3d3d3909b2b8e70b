"""A readers-writer lock."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from .errors import InputError


class SharedLock:
    """A readers-writer lock; a waiting writer blocks new readers, except for threads that already hold the lock."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._holders: list[int] = []  # ids of reading threads, once per acquisition
        self._waiting = 0

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Acquire for reading. Reentrant."""
        thread = threading.get_ident()
        with self._changed:
            while self._waiting and thread not in self._holders:
                self._changed.wait()
            self._holders.append(thread)
        try:
            yield
        finally:
            with self._changed:
                self._holders.remove(thread)
                self._changed.notify_all()

    @contextmanager
    def alone(self, busy: str) -> Iterator[None]:
        """Acquire for writing. Raises `InputError(busy)` if this thread is a reader, as it would deadlock."""
        with self._changed:
            if threading.get_ident() in self._holders:
                raise InputError(busy)
            self._waiting += 1
            try:
                while self._holders:
                    self._changed.wait()
                yield
            finally:
                self._waiting -= 1
                self._changed.notify_all()
