"""Where the work of a GPU backend is called from: the caller's thread, or one thread of the backend's own."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, Protocol, TypeVar

from .device import on_device, use_device, visible_devices

P = ParamSpec("P")
T = TypeVar("T")


class Runner(Protocol):
    """Calls functions with a GPU as the current one."""

    def __call__(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function and return its result."""

    def close(self) -> None:
        """Free what this holds; nothing may be called any more."""


class OnCaller:
    """Calls in the caller's thread, and leaves its current GPU as it was."""

    def __init__(self, device_index: int) -> None:
        self._index, self._only = device_index, len(visible_devices()) == 1

    def __call__(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """See `Runner`."""
        if self._only:  # it is always the current one, and asking costs a driver call
            return work(*args, **kwargs)
        with on_device(self._index):
            return work(*args, **kwargs)

    def close(self) -> None:
        """See `Runner`."""


class OnOwnThread:
    """Calls in one thread, in order: for libraries whose captured graphs belong to the thread that recorded them."""

    def __init__(self, device_index: int) -> None:
        self._executor = ThreadPoolExecutor(1, "latentrt-gpu", self._begin, (device_index,))
        self._thread = 0

    def _begin(self, device_index: int) -> None:
        self._thread = threading.get_ident()
        use_device(device_index)

    def __call__(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """See `Runner`. Calls from inside of such a call run at once."""
        if threading.get_ident() == self._thread:
            return work(*args, **kwargs)
        return self._executor.submit(work, *args, **kwargs).result()

    def close(self) -> None:
        """See `Runner`."""
        self._executor.shutdown(wait=threading.get_ident() != self._thread)
