"""PyTorch's random noise for a seed, without PyTorch. Knows nothing about latents, samplers or images.

`torch.Generator("cpu")` is the Mersenne Twister MT19937, like numpy's. It draws normal values with the Box-Muller
transform in one of two ways (ATen, `native/cpu/DistributionTemplates.h` and `core/DistributionsHelper.h`): tensors of
16 or more values in blocks of 16, smaller ones value by value in float64. `torch.Generator("cuda")` is Philox.
"""

import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from latentrt.runtime.errors import InputError, shown

BLOCK = 16
CUDA_BLOCK = 256  # threads per block in PyTorch's random kernels
_SEED_RANGE = (-(2**63), 2**64 - 1)


class TorchGenerator:
    """Draws the values of `torch.randn(shape, generator=g)`, where g is `torch.Generator(device).manual_seed(seed)`.

    Float32 values agree with PyTorch's to 3e-6, most of them bit for bit; PyTorch itself differs that much between
    processors, because it uses vector or fast instructions for logarithm and sine where available.
    """

    def __init__(
        self, seed: int, device: str = "cpu", *, multiprocessors: int = 132, threads_per_multiprocessor: int = 2048
    ) -> None:
        """Seed the generator.

        Args:
            seed: -2**63 to 2**64 - 1, as in PyTorch; the CPU generator uses the low 32 bits.
            device: which of PyTorch's generators to emulate, "cpu" or "cuda". They give different noise.
            multiprocessors: of the emulated GPU; the default is an H100. This and the next argument matter only for
                tensors of more values than the GPU has threads (270,336 on an H100, 49,152 on a small GPU).
            threads_per_multiprocessor: 2048 on most data centre GPUs, 1536 on GeForce 30 to 50, 1024 on GeForce 20.

        Raises: InputError: invalid seed or device.
        """
        if device not in ("cpu", "cuda"):
            raise InputError(f"device={device!r}: expected 'cpu' or 'cuda'")
        if isinstance(seed, bool) or not hasattr(seed, "__index__"):
            raise InputError(f"seed={shown(seed)}: expected an integer")
        if not _SEED_RANGE[0] <= seed <= _SEED_RANGE[1]:
            raise InputError(f"seed={shown(seed)}: expected an integer from -2**63 to 2**64 - 1")
        seed = operator.index(seed) % 2**64
        threads = multiprocessors * (threads_per_multiprocessor // CUDA_BLOCK) * CUDA_BLOCK
        self._source = _Twister(seed) if device == "cpu" else _Philox(seed, threads)

    def randn(self, shape: int | Sequence[int], dtype: DTypeLike = np.float32) -> NDArray[Any]:
        """The next unit normal values, of shape `shape`. Float16 values are rounded from float32.

        Raises: InputError: dtype is neither float32 nor float16.
        """
        dtype = np.dtype(dtype)
        if dtype not in (np.float32, np.float16):
            raise InputError(f"dtype={dtype}: expected float32 or float16")
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        return self._source.normal(math.prod(shape), dtype).astype(dtype, copy=False).reshape(shape)


class _Twister:
    """PyTorch's CPU generator: MT19937, and Box-Muller in blocks of 16 or value by value."""

    def __init__(self, seed: int) -> None:
        self._bits = np.random.RandomState(seed & 0xFFFFFFFF)
        self._spare: float | None = None

    def normal(self, count: int, dtype: np.dtype[Any]) -> NDArray[np.float32]:
        if count < BLOCK:
            return np.array([self._single() for _ in range(count)], np.float32)
        rest = count % BLOCK
        values = np.empty(count, np.float32)
        values[: count - rest] = _box_muller(self._uniform(count - rest))
        if rest:  # the last 16 values are drawn again as a block; in float32, after one draw per value of the rest
            self._uniform(rest if dtype == np.float32 else 0)
            values[-BLOCK:] = _box_muller(self._uniform(BLOCK))
        return values

    def _uniform(self, count: int) -> NDArray[np.float32]:
        """Uniform in [0, 1), from the low 24 bits of each 32-bit draw."""
        bits = self._bits.randint(0, 2**32, size=count, dtype=np.uint32)
        return (bits & np.uint32(0xFFFFFF)).astype(np.float32) * np.float32(2.0**-24)

    def _single(self) -> float:
        """Box-Muller gives two values; the second one is kept for the next call, even across tensors."""
        if self._spare is not None:
            value, self._spare = self._spare, None
            return value
        angle, size = 2 * math.pi * self._uniform53(), self._uniform53()
        radius = math.sqrt(-2 * math.log1p(-size))
        self._spare = radius * math.sin(angle)
        return radius * math.cos(angle)

    def _uniform53(self) -> float:
        """Uniform in [0, 1), from the low 53 bits of two draws."""
        high, low = (int(bits) for bits in self._bits.randint(0, 2**32, size=2, dtype=np.uint32))
        return ((high << 32 | low) & (2**53 - 1)) * 2.0**-53


class _Philox:
    """PyTorch's CUDA generator: Philox4x32-10, one sequence per thread of the grid (ATen,
    `native/cuda/DistributionTemplates.h`), and cuRAND's Box-Muller, four values from four random words.

    A grid of T threads fills T values with the first of each thread's four values, the next T with the second, ...;
    small tensors have one thread per value, and three of four values are not used.
    """

    def __init__(self, seed: int, max_threads: int) -> None:
        self._key = (seed & 0xFFFFFFFF, seed >> 32)
        self._max_threads = max_threads
        self._drawn = 0  # blocks of four words used by each thread

    def normal(self, count: int, _: np.dtype[Any]) -> NDArray[np.float32]:
        if count == 0:
            return np.empty(0, np.float32)
        threads = min(-(-count // CUDA_BLOCK) * CUDA_BLOCK, self._max_threads)
        rounds = (count - 1) // (4 * threads) + 1
        used = threads if rounds > 1 else min(threads, count)
        counters = np.zeros((rounds, used, 4), np.uint32)
        blocks = np.arange(self._drawn, self._drawn + rounds, dtype=np.uint64)[:, None]
        counters[..., 0], counters[..., 1] = blocks & np.uint64(0xFFFFFFFF), blocks >> np.uint64(32)
        counters[..., 2] = np.arange(used, dtype=np.uint32)  # cuRAND's subsequence; a grid has fewer than 2**32 threads
        self._drawn += rounds
        words = philox(counters, self._key).reshape(rounds, used, 2, 2)
        unit = np.float32(2.0**-32)
        u = words[..., 0].astype(np.float32) * unit + unit / 2
        angle = words[..., 1].astype(np.float32) * (unit * np.float32(2 * np.pi)) + unit * np.float32(np.pi)
        radius = np.sqrt(np.float32(-2) * np.log(u))
        values = np.stack([radius * np.sin(angle), radius * np.cos(angle)], -1).reshape(rounds, used, 4)
        # With at most one value per thread, only the first of four is used.
        return values[0, :, 0] if used < threads else values.transpose(0, 2, 1).reshape(-1)[:count]


def philox(counters: NDArray[np.uint32], key: tuple[int, int]) -> NDArray[np.uint32]:
    """Philox4x32 with 10 rounds: Salmon et al. (2011), "Parallel random numbers: as easy as 1, 2, 3".

    Args:
        counters: (..., 4) words.
        key: two words.

    Returns: (..., 4) random words.
    """
    low = np.uint64(0xFFFFFFFF)
    a, b, c, d = (counters[..., i].astype(np.uint64) for i in range(4))
    k0, k1 = key
    for _ in range(10):
        first, second = a * np.uint64(0xD2511F53), c * np.uint64(0xCD9E8D57)
        a, c = second >> np.uint64(32) ^ b ^ np.uint64(k0), first >> np.uint64(32) ^ d ^ np.uint64(k1)
        b, d = second & low, first & low
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return np.stack([a, b, c, d], -1).astype(np.uint32)


def _box_muller(uniform: NDArray[np.float32]) -> NDArray[np.float32]:
    """Normal values from uniform ones, in blocks of 16: the first 8 give the radius, the last 8 the angle."""
    pairs = uniform.reshape(-1, 2, BLOCK // 2)
    # Float32 throughout, like PyTorch: float64 would be more precise but differ more from PyTorch.
    radius = np.sqrt(np.float32(-2) * np.log(np.float32(1) - pairs[:, 0]))
    angle = np.float32(2 * np.pi) * pairs[:, 1]
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1).ravel()
