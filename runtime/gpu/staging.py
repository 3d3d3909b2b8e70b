"""Pinned memory for copies between host and GPU, reused once its copy is done."""

import weakref
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentrt.runtime.errors import BackendError

from .device import Event, PinnedMemory, Stream

SMALLEST = 1 << 12


class Download:
    """An array on its way to the host."""

    def __init__(self, piece: "_Piece", shape: tuple[int, ...], dtype: Any) -> None:
        self._piece: _Piece | None = piece
        self._shape, self._dtype = shape, np.dtype(dtype)
        self._array: NDArray[Any] | None = None

    def result(self) -> NDArray[Any]:
        """The array; waits for its copy, and for nothing behind it."""
        if self._array is None:
            assert self._piece is not None
            size = int(np.prod(self._shape)) * self._dtype.itemsize
            self._array = self._piece.wait(size).view(self._dtype).reshape(self._shape).copy()
            self._piece = None
        return self._array


class Staging:
    """Uploads and downloads on one stream."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._pieces: list[_Piece] = []

    def upload(self, address: int, array: NDArray[Any]) -> None:
        """Copy an array to the GPU, asynchronously; the array may change at once."""
        piece = self._free_piece(array.nbytes)
        source = piece.memory.bytes[: array.nbytes]
        source[:] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        self._stream.upload(address, source)
        piece.event.record(self._stream)

    def download(self, address: int, shape: tuple[int, ...], dtype: Any) -> Download:
        """Start copying an array to the host."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        piece = self._free_piece(size)
        self._stream.download(piece.memory.bytes[:size], address)
        piece.event.record(self._stream)
        download = Download(piece, shape, dtype)
        piece.reader = weakref.ref(download)
        return download

    def _free_piece(self, size: int) -> "_Piece":
        for piece in self._pieces:
            if size <= len(piece.memory.bytes) and piece.is_free():
                return piece
        self._pieces.append(_Piece(max(SMALLEST, 1 << (size - 1).bit_length())))
        return self._pieces[-1]

    def close(self) -> None:
        """Free the memory; no copy may be pending."""
        while self._pieces:
            self._pieces.pop().close()


class _Piece:
    """Pinned memory for one copy, and the event behind it."""

    def __init__(self, size: int) -> None:
        self.memory = PinnedMemory(size)
        try:
            self.event = Event()
        except BaseException:
            self.memory.close()
            raise
        self.reader: weakref.ref[Download] | None = None

    def is_free(self) -> bool:
        """Whether its copy is done, and nobody will read it any more."""
        if self.reader is not None and (download := self.reader()) is not None and download._piece is self:
            return False
        return self.event.done()

    def wait(self, size: int) -> NDArray[np.uint8]:
        """The bytes, once the copy is done."""
        if not self.memory.address:
            raise BackendError("these pixels or latents were not read before their pipeline was closed")
        self.event.synchronize()
        return self.memory.bytes[:size]

    def close(self) -> None:
        """Free the memory."""
        self.memory.close()
        self.event.close()
