"""Keeps CUDA graphs that a library records in global mode apart from everything that would break them.

While one thread records in this mode, which ONNX Runtime uses, allocating and waiting are forbidden in the whole
process. Our own captures are local to their thread and need none of this.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from latentrt.runtime.errors import InputError
from latentrt.runtime.locks import SharedLock

_lock = SharedLock()
_of_thread = threading.local()  # whether it is in `no_recording`; its blocks begin and end in one thread


@contextmanager
def no_recording() -> Iterator[None]:
    """Nothing is recorded in global mode during the block: wait until a recording has ended."""
    if getattr(_of_thread, "inside", False):
        yield
        return
    with _lock.shared():
        _of_thread.inside = True
        try:
            yield
        finally:
            _of_thread.inside = False


@contextmanager
def recording() -> Iterator[None]:
    """No other thread is in `no_recording` during the block."""
    if getattr(_of_thread, "inside", False):
        raise InputError("a recording cannot begin inside of no_recording")
    with _lock.alone("a recording waits without limit"):
        yield
