"""Device memory for the tensors of a graph."""

import math
from collections.abc import Iterable
from contextlib import ExitStack

from latentrt.runtime.arrays import DTYPES
from latentrt.runtime.bundle import Sizes, TensorSpec, shape_at

from .device import DeviceMemory, Stream


class Buffers:
    """A zeroed block for each tensor, 256-byte aligned.

    Attributes:
        addresses, sizes: of each block by name; sizes in bytes.
    """

    def __init__(self, stream: Stream, tensors: Iterable[TensorSpec], sizes: Sizes) -> None:
        """Raises `OutOfMemoryError`; then nothing is allocated."""
        self._stream, self._blocks = stream, ExitStack()
        self.addresses: dict[str, int] = {}
        self.sizes: dict[str, int] = {}
        try:
            for tensor in tensors:
                self._allocate(tensor, sizes)
        except BaseException:
            self.close()
            raise

    def _allocate(self, tensor: TensorSpec, sizes: Sizes) -> None:
        size = math.prod(shape_at(tensor, sizes)) * DTYPES[tensor.dtype].bytes
        block = DeviceMemory(size)
        self._blocks.callback(block.close)
        self.addresses[tensor.name], self.sizes[tensor.name] = block.address, size
        self._stream.zero(block)

    def close(self) -> None:
        """Free the memory; the stream must be idle."""
        self._blocks.close()
