"""Pinned memory for copies between host and GPU."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .device import Bytes, PinnedMemory


class Staging:
    """Pinned memory, handed out piece by piece; no piece is used again before `reset`."""

    def __init__(self) -> None:
        self._blocks: list[PinnedMemory] = []
        self._used = 0

    def take(self, size: int) -> Bytes:
        """A piece of this many bytes."""
        if not self._blocks or self._used + size > len(self._blocks[-1].bytes):
            self._blocks.append(PinnedMemory(max(size, 1 << 20)))
            self._used = 0
        piece = self._blocks[-1].bytes[self._used : self._used + size]
        self._used += -(-size // 64) * 64
        return piece

    def fill(self, array: NDArray[Any]) -> Bytes:
        """A piece that holds an array."""
        piece = self.take(array.nbytes)
        piece[:] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        return piece

    def reset(self) -> None:
        """All pieces may be used again: nothing copies from or to them any more. One block is left, as large as all."""
        self._used = 0
        if len(self._blocks) > 1:
            total = sum(len(block.bytes) for block in self._blocks)
            self.close()
            self._blocks = [PinnedMemory(total)]

    def close(self) -> None:
        """Give the memory back."""
        while self._blocks:
            self._blocks.pop().close()
