"""A lock that many may share, or one may have alone."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from latentrt.runtime.errors import InputError


class SharedLock:
    """Those who share it never wait for each other; who wants it alone waits for them, and newcomers wait for him."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._holders: list[int] = []  # threads that share it, once for each time
        self._waiting = 0

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Hold it together with others; again, too, for a thread that holds it already."""
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
        """Hold it alone; `InputError(busy)` where this thread itself shares it, and would wait for ever."""
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
