"""Keeps CUDA graphs that a library records in global mode apart from everything that would break them.

While one thread records in this mode, which ONNX Runtime uses, allocating and waiting are forbidden in the whole
process. Our own captures are local to their thread and need none of this.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from latentrt.runtime.locks import SharedLock

_lock = SharedLock()


@contextmanager
def no_recording() -> Iterator[None]:
    """Nothing is recorded in global mode during the block: wait until a recording has ended."""
    with _lock.shared():
        yield


@contextmanager
def recording() -> Iterator[None]:
    """No other thread is in `no_recording` during the block."""
    with _lock.alone("a recording cannot begin inside of no_recording"):
        yield
