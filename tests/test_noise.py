"""`TorchGenerator` against PyTorch's own generator, and against statistics where PyTorch is not asked."""

import numpy as np
import pytest

from latentrt.runtime.errors import InputError
from latentrt.runtime.noise import TorchGenerator

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


def test_a_million_values_are_mostly_bit_equal() -> None:
    import torch

    theirs = torch.randn(10**6, generator=torch.Generator("cpu").manual_seed(5)).numpy()
    ours = TorchGenerator(5).randn(10**6)
    assert np.abs(ours - theirs).max() <= TOLERANCE
    assert np.mean(ours == theirs) > 0.5


@pytest.mark.parametrize("seed", [0, 11, 2**40 + 3])
def test_successive_draws_of_mixed_sizes(seed: int) -> None:
    """A spare value from an odd small draw waits through larger draws, and block draws move the twister on."""
    import torch

    sizes = (3, 17, 1, 16, 15, 1, 1, 100, 5, 31, (2, 8), 0, (1, 4, 9, 7), 2, ())
    theirs, ours = torch.Generator("cpu").manual_seed(seed), TorchGenerator(seed)
    for size in sizes * 3:
        expected = torch.randn(size, generator=theirs).numpy()
        got = ours.randn(size)
        assert got.shape == expected.shape
        np.testing.assert_allclose(got, expected, rtol=0, atol=TOLERANCE)


def test_known_first_values() -> None:
    """What PyTorch 2.13 gives for seed 0: holds where PyTorch is not installed."""
    expected = [1.5409961, -0.2934289, -2.1787894, 0.56843126, -1.0845224, -1.3985955, 0.40334684, 0.83802634]
    np.testing.assert_allclose(TorchGenerator(0).randn(8), expected, rtol=0, atol=TOLERANCE)


def test_values_are_unit_normal() -> None:
    values = TorchGenerator(3).randn((4, 256, 256)).astype(np.float64)
    assert abs(values.mean()) < 0.01
    assert abs(values.var() - 1) < 0.01
    assert abs(np.mean(values**4) - 3) < 0.05


def test_wrong_arguments_are_explained() -> None:
    import torch

    with pytest.raises(InputError, match=r"cuda.*only the noise of torch\.Generator\('cpu'\)"):
        TorchGenerator(0, device="cuda")
    for seed in (2**64, -(2**63) - 1):
        with pytest.raises(InputError, match=r"-2\*\*63 to 2\*\*64 - 1"):
            TorchGenerator(seed)
        with pytest.raises((RuntimeError, OverflowError, ValueError)):
            torch.Generator("cpu").manual_seed(seed)
    for wrong in (1.5, True, "0", None):
        with pytest.raises(InputError, match="whole number"):
            TorchGenerator(wrong)
