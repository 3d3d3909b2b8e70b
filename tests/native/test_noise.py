"""Noise in C++ is that of `latents/noise.py`: the CPU's generator and the GPU's."""

import ctypes
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support.native import probe
from support.probe_arguments import address, size

from latentrt.runtime.latents import TorchGenerator

RNGS = ("cpu", "cuda")


def drawn(seed: int, rng: str, counts: Sequence[int]) -> NDArray[np.float32]:
    out = np.full(sum(counts), np.nan, np.float32)
    listed = np.array(counts, np.uint64)
    probe().probe_randn(ctypes.c_uint64(seed), RNGS.index(rng), address(listed), size(len(counts)), address(out))
    return out


def wanted(seed: int, rng: str, counts: Sequence[int]) -> NDArray[np.float32]:
    generator = TorchGenerator(seed, rng)
    return np.concatenate([generator.randn(count) for count in counts])


@pytest.mark.parametrize("rng", RNGS)
@pytest.mark.parametrize("seed", [0, 5, 2**32 - 1, 2**32, 2**53 + 1, 2**63, 2**64 - 1])
@pytest.mark.parametrize("counts", [(16,), (4 * 64 * 64,), (1000, 17, 4096), (31, 3, 3, 40, 5, 1)], ids=str)
def test_equals_python(rng: str, seed: int, counts: tuple[int, ...]) -> None:
    ours, theirs = drawn(seed, rng, counts), wanted(seed, rng, counts)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=3e-6)
    if ours.size > 1000:
        assert np.mean(ours == theirs) > 0.5


@pytest.mark.parametrize("rng", RNGS)
def test_few_values_come_one_by_one(rng: str) -> None:
    counts = (3, 1, 15, 2, 7)
    np.testing.assert_allclose(drawn(77, rng, counts), wanted(77, rng, counts), rtol=0, atol=3e-6)


@pytest.mark.parametrize("count", [132 * 2048 - 1, 132 * 2048, 132 * 2048 + 1, 4 * 132 * 2048, 1_500_001])
def test_grid_of_the_gpu_is_used_again_for_large_tensors(count: int) -> None:
    counts = (count, 300)
    np.testing.assert_allclose(drawn(9, "cuda", counts), wanted(9, "cuda", counts), rtol=0, atol=3e-6)


def test_numbers_of_values_are_what_is_asked_for() -> None:
    assert np.isfinite(drawn(1, "cpu", (0, 16, 0, 33))).all()
    assert drawn(1, "cuda", (0,)).size == 0


def test_equals_pytorch() -> None:
    theirs = torch.randn(4, 33, 35, generator=torch.Generator().manual_seed(424242)).numpy().ravel()
    np.testing.assert_allclose(drawn(424242, "cpu", (theirs.size,)), theirs, rtol=0, atol=3e-6)


def test_first_values_of_a_gpu() -> None:
    """Those of `torch.manual_seed(0); torch.randn(2, 3, device="cuda")` in PyTorch's documentation and forums."""
    known = [-0.9247, -0.4253, -2.6438, 0.1452, -0.1209, -0.5797]
    np.testing.assert_allclose(drawn(0, "cuda", (6,)), known, rtol=0, atol=5e-5)
