"""Pinned memory for copies between host and GPU."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .device import Bytes, PinnedMemory


class Staging:
    """A bump allocator of pinned memory; nothing is reused before `reset`."""

    def __init__(self) -> None:
        self._blocks: list[PinnedMemory] = []
        self._used = 0

    def take(self, size: int) -> Bytes:
        """Allocate this many bytes."""
        if not self._blocks or self._used + size > len(self._blocks[-1].bytes):
            self._blocks.append(PinnedMemory(max(size, 1 << 20)))
            self._used = 0
        piece = self._blocks[-1].bytes[self._used : self._used + size]
        self._used += -(-size // 64) * 64
        return piece

    def fill(self, array: NDArray[Any]) -> Bytes:
        """Allocate a copy of an array."""
        piece = self.take(array.nbytes)
        piece[:] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        return piece

    def reset(self) -> None:
        """Reuse all memory; call it only when no copy is pending. Several blocks are merged into one."""
        self._used = 0
        if len(self._blocks) > 1:
            total = sum(len(block.bytes) for block in self._blocks)
            self.close()
            self._blocks = [PinnedMemory(total)]

    def close(self) -> None:
        """Free the memory."""
        while self._blocks:
            self._blocks.pop().close()
