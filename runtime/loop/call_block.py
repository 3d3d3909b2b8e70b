"""The device memory of all inputs that change with every call, in one block, so that one upload writes them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentrt.runtime.arrays import DTYPES
from latentrt.runtime.bundle import Sizes, TensorSpec, shape_at
from latentrt.runtime.gpu.device import DeviceMemory, PinnedMemory, Stream

ALIGNMENT = 256


@dataclass(frozen=True, slots=True)
class _Section:
    """Where a tensor is in the block."""

    offset: int
    shape: tuple[int, ...]
    dtype: Any

    @property
    def row_bytes(self) -> int:
        return int(math.prod(self.shape[1:]) * np.dtype(self.dtype).itemsize)


class CallBlock:
    """Rows for all slots: those of each call, then those that only some calls need, such as noise.

    The host writes to two pinned blocks in turns; a turn comes again when its upload is long done.

    Attributes:
        addresses: of the inputs by name.
    """

    def __init__(
        self, stream: Stream, specs: Sequence[TensorSpec], sizes: Sizes, sometimes: TensorSpec | None = None
    ) -> None:
        """`sometimes` comes last. Raises `OutOfMemoryError`; then nothing is allocated."""
        self._stream, self._batch = stream, sizes["B"]
        self._sometimes = None if sometimes is None else sometimes.name
        self._sections: dict[str, _Section] = {}
        end = 0
        for spec in (*specs, *([] if sometimes is None else [sometimes])):
            section = _Section(end, shape_at(spec, sizes), DTYPES[spec.dtype].numpy)
            self._sections[spec.name] = section
            end += -(-section.shape[0] * section.row_bytes // ALIGNMENT) * ALIGNMENT
        self._device = DeviceMemory(end)
        self._pinned: list[PinnedMemory] = []
        try:
            for _ in range(2):
                self._pinned.append(PinnedMemory(end))
        except BaseException:
            self.close()
            raise
        stream.zero(self._device)
        for pinned in self._pinned:
            pinned.bytes[:] = 0
        self.addresses = {name: self._device.address + section.offset for name, section in self._sections.items()}

    def rows(self, turn: int, batch: int, *, whole: bool = False) -> dict[str, NDArray[Any]]:
        """Pinned arrays of the first rows, by name; `whole` with those that only some calls need."""
        names = [name for name in self._sections if whole or name != self._sometimes]
        return {name: self._view(turn, self._sections[name], batch) for name in names}

    def upload(self, turn: int, batch: int, *, whole: bool = False) -> None:
        """Copy what was written, asynchronously."""
        end = len(self._pinned[turn].bytes)
        if self._sometimes is not None:
            last = self._sections[self._sometimes]
            end = last.offset + (batch * last.row_bytes if whole else 0)
        self._stream.upload(self._device.address, self._pinned[turn].bytes[:end])

    def _view(self, turn: int, section: _Section, batch: int) -> NDArray[Any]:
        rows = section.shape[0] // self._batch * batch
        part = self._pinned[turn].bytes[section.offset : section.offset + rows * section.row_bytes]
        array: NDArray[Any] = part.view(section.dtype).reshape(rows, *section.shape[1:])
        return array

    def close(self) -> None:
        """Free the memory; no copy may be pending."""
        self._device.close()
        while self._pinned:
            self._pinned.pop().close()
