"""`TorchGenerator` against PyTorch's generators and known values, and statistical tests."""

import numpy as np
import pytest

from latentrt.runtime.errors import InputError
from latentrt.runtime.latents import TorchGenerator
from latentrt.runtime.latents.noise import philox

SEEDS = (0, 1, 2, 3, 7, 42, 123, 1234, 31337, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**32 + 5, 987654321987, 2**53 + 1)
EXTREME_SEEDS = (2**63, 2**64 - 1, -1, -(2**63), -987654321987)
SHAPES = ((3,), (15,), (16,), (17,), (1, 4, 33, 41), (4, 64, 64))
TOLERANCE = 3e-6


@pytest.mark.parametrize("seed", SEEDS + EXTREME_SEEDS)
def test_same_values_as_torch(seed: int) -> None:
    import torch

    for shape in SHAPES:
        theirs = torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed)).numpy()
        ours = TorchGenerator(seed).randn(shape)
        assert ours.shape == shape
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE)


def test_a_million_values_of_twenty_seeds_are_mostly_bit_equal() -> None:
    """Measured with AVX2; with other instruction sets, other values of PyTorch differ in the last bit."""
    import torch

    for seed in range(100, 120):
        theirs = torch.randn(10**6, generator=torch.Generator("cpu").manual_seed(seed)).numpy()
        ours = TorchGenerator(seed).randn(10**6)
        assert np.abs(ours - theirs).max() <= TOLERANCE
        equal = np.mean(ours == theirs)
        assert equal > 0.8, f"{equal:.3f} with {torch.backends.cpu.get_cpu_capability()}"


@pytest.mark.parametrize("seed", [0, 9, 2**33 + 1])
def test_float16_is_what_torch_draws_in_float16(seed: int) -> None:
    import torch

    theirs, ours = torch.Generator("cpu").manual_seed(seed), TorchGenerator(seed)
    for shape in ((1, 4, 32, 24), (5,), (17,), (3,)):
        expected = torch.randn(shape, generator=theirs, dtype=torch.float16).numpy()
        got = ours.randn(shape, np.float16)
        assert got.dtype == np.float16
        np.testing.assert_allclose(got.astype(np.float32), expected.astype(np.float32), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # known answers of Random123, the authors' library
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_philox_known_answers(counter: str, key: str, expected: str) -> None:
    words = np.array([int(word, 16) for word in counter.split()], np.uint32)
    low, high = (int(word, 16) for word in key.split())
    assert [f"{word:08x}" for word in philox(words, (low, high))] == expected.split()


def test_cuda_first_values() -> None:
    """Values from PyTorch's documentation and forums for `torch.manual_seed(0); torch.randn(2, 3, device="cuda")`."""
    expected = [[-0.9247, -0.4253, -2.6438], [0.1452, -0.1209, -0.5797]]
    np.testing.assert_allclose(TorchGenerator(0, "cuda").randn((2, 3)), expected, rtol=0, atol=5e-5)


def grid_by_grid(seed: int, sizes: list[int], threads: int) -> list[np.ndarray]:
    """PyTorch's kernel, thread by thread: `for (i = thread; i < rounded; i += 4 * threads)`, four values at a time."""
    results, offset = [], 0
    for count in sizes:
        grid = min(-(-count // 256) * 256, threads)
        values = np.full(count, np.nan, np.float64)
        turns = (count - 1) // (4 * grid) + 1
        for thread in range(min(grid, count)):
            for turn in range(turns):
                words = philox(np.array([offset + turn, 0, thread, 0], np.uint32), (seed, 0)).astype(np.float64)
                uniform = words * 2.0**-32 + 2.0**-33
                pair = []
                for a, b in (uniform[:2], uniform[2:]):
                    pair += [np.sqrt(-2 * np.log(a)) * f(2 * np.pi * b) for f in (np.sin, np.cos)]
                for k in range(4):
                    at = thread + turn * 4 * grid + k * grid
                    if at < count:
                        values[at] = pair[k]
        offset += turns
        results.append(values)
    return results


def test_cuda_grid_of_a_small_gpu() -> None:
    """Tensors with less than, exactly and more than one value per thread of a given GPU."""
    sizes = [5, 256, 511, 512, 700, 2048, 2049, 5000]
    generator = TorchGenerator(77, "cuda", multiprocessors=1, threads_per_multiprocessor=512)
    for size, expected in zip(sizes, grid_by_grid(77, sizes, 512), strict=True):
        np.testing.assert_allclose(generator.randn(size), expected, rtol=0, atol=2e-5)
    other = TorchGenerator(77, "cuda", multiprocessors=2, threads_per_multiprocessor=512)
    small = TorchGenerator(77, "cuda", multiprocessors=1, threads_per_multiprocessor=512)
    assert np.array_equal(other.randn(500), small.randn(500))
    assert not np.array_equal(other.randn(2000), small.randn(2000))


def test_cuda_seeds_of_64_bits_and_below_zero() -> None:
    first = {seed: TorchGenerator(seed, "cuda").randn(64) for seed in (1, 2**32 + 1, -1, 2**64 - 1)}
    assert not np.array_equal(first[1], first[2**32 + 1])
    assert np.array_equal(first[-1], first[2**64 - 1])


@pytest.mark.parametrize("seed", [0, 11, 2**40 + 3])
def test_successive_draws_of_mixed_sizes(seed: int) -> None:
    """The spare value of an odd small draw is kept across larger draws, and block draws advance the twister."""
    import torch

    sizes = (3, 17, 1, 16, 15, 1, 1, 100, 5, 31, (2, 8), 0, (1, 4, 9, 7), 2, ())
    theirs, ours = torch.Generator("cpu").manual_seed(seed), TorchGenerator(seed)
    for size in sizes * 3:
        expected = torch.randn(size, generator=theirs).numpy()
        got = ours.randn(size)
        assert got.shape == expected.shape
        np.testing.assert_allclose(got, expected, rtol=0, atol=TOLERANCE)


def test_known_first_values() -> None:
    """Values of PyTorch 2.13 for seed 0, for machines without PyTorch."""
    expected = [1.5409961, -0.2934289, -2.1787894, 0.56843126, -1.0845224, -1.3985955, 0.40334684, 0.83802634]
    np.testing.assert_allclose(TorchGenerator(0).randn(8), expected, rtol=0, atol=TOLERANCE)


def test_values_are_unit_normal() -> None:
    values = TorchGenerator(3).randn((4, 256, 256)).astype(np.float64)
    assert abs(values.mean()) < 0.01
    assert abs(values.var() - 1) < 0.01
    assert abs(np.mean(values**4) - 3) < 0.05


def test_wrong_arguments_are_explained() -> None:
    import torch

    with pytest.raises(InputError, match="device='mps': expected 'cpu' or 'cuda'"):
        TorchGenerator(0, device="mps")
    with pytest.raises(InputError, match="dtype=float64: expected float32 or float16"):
        TorchGenerator(0).randn(4, np.float64)
    for seed in (2**64, -(2**63) - 1):
        with pytest.raises(InputError, match=r"-2\*\*63 to 2\*\*64 - 1"):
            TorchGenerator(seed)
        with pytest.raises((RuntimeError, OverflowError, ValueError)):
            torch.Generator("cpu").manual_seed(seed)
    for wrong in (1.5, True, "0", None):
        with pytest.raises(InputError, match="expected an integer"):
            TorchGenerator(wrong)
