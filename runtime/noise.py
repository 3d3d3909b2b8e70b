"""The noise that PyTorch draws for a seed, without PyTorch. Knows nothing of latents, samplers and images.

`torch.Generator("cpu")` is the Mersenne Twister MT19937, as numpy's is. Its normal values come from the Box-Muller
transform in one of two ways (ATen, `native/cpu/DistributionTemplates.h` and `core/DistributionsHelper.h`): tensors of
16 or more values in blocks of 16 and float32, smaller ones value by value in float64.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .errors import InputError

BLOCK = 16
_SEED_RANGE = (-(2**63), 2**64 - 1)


class TorchGenerator:
    """Draws what `torch.randn(shape, generator=torch.Generator(device).manual_seed(seed))` draws, call after call.

    Values agree with PyTorch's to 3e-6 and are mostly equal to the bit; PyTorch itself differs that much between CPUs,
    because it computes logarithm and sine with vector instructions where it can.
    """

    def __init__(self, seed: int, device: str = "cpu") -> None:
        """Seed the generator.

        Args:
            seed: -2**63 to 2**64 - 1, as PyTorch takes it; the CPU generator uses the low 32 bits.
            device: which of PyTorch's generators to follow; "cpu" is the only one here.

        Raises: InputError: seed or device is not one of these.
        """
        if device != "cpu":
            raise InputError(
                f"device={device!r}: only the noise of torch.Generator('cpu') can be drawn. A seed used with "
                "torch.Generator('cuda') gives another picture; pass its noise as latents to repeat that one"
            )
        if isinstance(seed, bool) or not hasattr(seed, "__index__"):
            raise InputError(f"seed={seed!r}: it is a whole number")
        if not _SEED_RANGE[0] <= seed <= _SEED_RANGE[1]:
            raise InputError(f"seed={seed}: it is from -2**63 to 2**64 - 1")
        self._bits = np.random.RandomState(int(seed) & 0xFFFFFFFF)
        self._spare: float | None = None

    def randn(self, shape: int | Sequence[int]) -> NDArray[np.float32]:
        """The next unit normal values, shaped `shape`, float32."""
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        count = math.prod(shape)
        values = self._blocks(count) if count >= BLOCK else self._singles(count)
        return values.reshape(shape)

    def _blocks(self, count: int) -> NDArray[np.float32]:
        """`count` values, at least one block; the last 16 are drawn anew as a block where blocks do not fit."""
        uniform = self._uniform(count)
        rest = count % BLOCK
        values = np.empty(count, np.float32)
        values[: count - rest] = _box_muller(uniform[: count - rest])
        if rest:
            values[-BLOCK:] = _box_muller(self._uniform(BLOCK))
        return values

    def _uniform(self, count: int) -> NDArray[np.float32]:
        """Uniform in [0, 1): the low 24 bits of each 32, as many as float32 holds."""
        bits = self._bits.randint(0, 2**32, size=count, dtype=np.uint32)
        return (bits & np.uint32(0xFFFFFF)).astype(np.float32) * np.float32(2.0**-24)

    def _singles(self, count: int) -> NDArray[np.float32]:
        return np.array([self._single() for _ in range(count)], np.float32)

    def _single(self) -> float:
        """Box-Muller gives two values; the second one waits for the next call, even across tensors."""
        if self._spare is not None:
            value, self._spare = self._spare, None
            return value
        angle, size = 2 * math.pi * self._uniform53(), self._uniform53()
        radius = math.sqrt(-2 * math.log1p(-size))
        self._spare = radius * math.sin(angle)
        return radius * math.cos(angle)

    def _uniform53(self) -> float:
        """Uniform in [0, 1): the low 53 bits of two draws, as many as float64 holds."""
        high, low = (int(bits) for bits in self._bits.randint(0, 2**32, size=2, dtype=np.uint32))
        return ((high << 32 | low) & (2**53 - 1)) * 2.0**-53


def _box_muller(uniform: NDArray[np.float32]) -> NDArray[np.float32]:
    """Normal values from uniform ones, in blocks of 16: the first 8 set the radius, the last 8 the angle."""
    pairs = uniform.reshape(-1, 2, BLOCK // 2)
    # Float32 throughout, as PyTorch: float64 would be nearer to the truth and farther from PyTorch.
    radius = np.sqrt(np.float32(-2) * np.log(np.float32(1) - pairs[:, 0]))
    angle = np.float32(2 * np.pi) * pairs[:, 1]
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1).ravel()
