"""Noise schedules as pure functions: betas, cumulative alphas, sigmas, and the spacings of timesteps and sigmas.

Knows nothing about samplers or configs. "Sigma" is the noise-to-signal ratio `sqrt((1 - abar) / abar)` of
Karras et al. (2022), arXiv:2206.00364. Where diffusers computes in float32, so does this module, operation by
operation, because timesteps are rounded from these values.
"""

import math
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Float32: TypeAlias = NDArray[np.float32]
Float64: TypeAlias = NDArray[np.float64]
Floats: TypeAlias = NDArray[np.floating]

# Smallest cumulative alpha where sigma must stay finite; sigma is 4096 there.
TERMINAL_ALPHA = np.float32(2.0**-24)
KARRAS_RHO = 7.0


def linspace(start: float, end: float, n: int) -> Float32:
    """`torch.linspace(start, end, n, dtype=torch.float32)`, bit for bit: float32 step, computed from the nearer end.

    Returns: (n,) float32.
    """
    first, last = np.float32(start), np.float32(end)
    if n == 1:
        return np.array([first])
    step = np.float64((last - first) / np.float32(n - 1))
    i = np.arange(n)
    up, down = np.float64(first) + step * i, np.float64(last) - step * (n - 1 - i)
    return np.where(i < n // 2, up, down).astype(np.float32)


def betas_from_schedule(schedule: str, start: float, end: float, n: int) -> Float32:
    """Betas of `linear`, `scaled_linear` (latent diffusion), `sigmoid`, or of a formula for the cumulative alpha.

    The formulas are `squaredcos_cap_v2` (Nichol and Dhariwal, 2021, arXiv:2102.09672), `exp` and `laplace` (Hang and
    Gu, 2024, arXiv:2407.03297).

    Returns: (n,) float32.
    """
    if schedule == "linear":
        return linspace(start, end, n)
    if schedule == "scaled_linear":
        root = linspace(start**0.5, end**0.5, n)
        return root * root
    if schedule == "sigmoid":
        sigmoid = np.float32(1) / (np.float32(1) + np.exp(-linspace(-6, 6, n)))
        return sigmoid * np.float32(end - start) + np.float32(start)
    if schedule in _ALPHA_BARS:
        bar = [_ALPHA_BARS[schedule](i / n) for i in range(n + 1)]
        return np.array([min(1 - bar[i + 1] / bar[i], 0.999) for i in range(n)], np.float32)
    raise ValueError(f"unknown beta schedule {schedule!r}")


def _laplace_alpha_bar(t: float) -> float:
    log_snr = -0.5 * math.copysign(1, 0.5 - t) * math.log(1 - 2 * abs(0.5 - t) + 1e-6)
    return math.sqrt(math.exp(log_snr) / (1 + math.exp(log_snr)))


_ALPHA_BARS: dict[str, Callable[[float], float]] = {
    "squaredcos_cap_v2": lambda t: math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2,
    "exp": lambda t: math.exp(-12 * t),
    "laplace": _laplace_alpha_bar,
}


def cumulative_alphas(betas: Float32) -> Float32:
    """`alphas_cumprod` of betas: PyTorch accumulates in float64 and rounds each entry. Shape (n,) float32."""
    return np.cumprod((np.float32(1) - betas).astype(np.float64)).astype(np.float32)


def zero_terminal_snr(betas: Float32) -> Float32:
    """Rescale betas so that the last timestep has no signal: Lin et al. (2023), arXiv:2305.08891, Algorithm 1.

    Returns: (n,) float32; the last one is 1.
    """
    root = np.sqrt(cumulative_alphas(betas))
    scale = root[0] / (root[0] - root[-1])
    bar = np.square((root - root[-1]) * scale)
    alphas = np.concatenate([bar[:1], bar[1:] / bar[:-1]])
    return np.float32(1) - alphas


def sigmas_from_alphas(alphas_cumprod: Float32) -> Float32:
    """`sqrt((1 - abar) / abar)` for every training timestep. Shape (n,) float32, increasing."""
    return np.asarray(np.sqrt((np.float32(1) - alphas_cumprod) / alphas_cumprod), np.float32)


def timestep_from_sigma(sigmas: Floats, log_table: Float32) -> Float64:
    """Fractional timesteps at which a table of log sigmas, one per training timestep, reaches `sigmas`.

    Linear in log sigma, clamped to the table's ends. Shape of `sigmas`, float64.
    """
    log_sigma = np.log(np.maximum(sigmas, 1e-10))
    low = np.clip(np.searchsorted(log_table, log_sigma, side="right") - 1, 0, len(log_table) - 2)
    below, above = log_table[low], log_table[low + 1]
    weight = np.clip((below - log_sigma) / (below - above), 0, 1)
    return np.asarray((1 - weight) * low + weight * (low + 1), np.float64)


def karras_sigmas(sigma_max: float, sigma_min: float, n: int, rho: float = KARRAS_RHO) -> Float64:
    """Karras et al. (2022), equation 5, from `sigma_max` down to `sigma_min`. Shape (n,)."""
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return np.asarray((high + np.linspace(0, 1, n) * (low - high)) ** rho, np.float64)


def exponential_sigmas(sigma_max: float, sigma_min: float, n: int) -> Float64:
    """Sigmas equally spaced in log sigma, from `sigma_max` down to `sigma_min`. Shape (n,)."""
    return np.asarray(np.exp(np.linspace(math.log(sigma_max), math.log(sigma_min), n)), np.float64)


def beta_sigmas(sigma_max: float, sigma_min: float, n: int) -> Float64:
    """Quantiles of the Beta(0.6, 0.6) distribution: Lee et al. (2024), arXiv:2407.12173. Shape (n,)."""
    shares = beta_quantiles(0.6, 0.6, 1 - np.linspace(0, 1, n))
    return np.asarray(sigma_min + shares * (sigma_max - sigma_min), np.float64)


def beta_quantiles(a: float, b: float, p: Float64) -> Float64:
    """Quantiles: x with `P(X <= x) = p` for X ~ Beta(a, b), to 1e-12 for a and b from 0.1 to 10. Shape of p.

    The density is integrated up to 1/2 as a power series; the other half is that of Beta(b, a). Bisection inverts it.
    """
    lower, upper = _beta_mass(a, b, np.array([0.5]))[0], _beta_mass(b, a, np.array([0.5]))[0]
    below = p * (lower + upper) <= lower
    x = _beta_inverse(a, b, np.where(below, p * (lower + upper), 0.0))
    rest = _beta_inverse(b, a, np.where(below, 0.0, (1 - p) * (lower + upper)))
    return np.asarray(np.where(below, x, 1 - rest), np.float64)


def _beta_mass(a: float, b: float, x: Float64) -> Float64:
    """The integral of `t**(a-1) (1-t)**(b-1)` from 0 to x, at most 1/2. Shape of x."""
    k = np.arange(1, 70)
    series = np.append(1.0, np.cumprod((k - b) / k)) / (a + np.append(0, k))
    return np.asarray(x**a * np.polynomial.polynomial.polyval(x, series), np.float64)


def _beta_inverse(a: float, b: float, mass: Float64) -> Float64:
    low, high = np.zeros_like(mass), np.full_like(mass, 0.5)
    for _ in range(60):
        middle = (low + high) / 2
        above = _beta_mass(a, b, middle) > mass
        low, high = np.where(above, low, middle), np.where(above, middle, high)
    return (low + high) / 2


def lu_sigmas(log_max: float, log_min: float, n: int) -> Float64:
    """Sigmas uniform in log signal-to-noise ratio: Lu et al. (2022), arXiv:2206.00927, section 3.3. Shape (n,)."""
    return np.asarray(np.exp(log_max + np.linspace(0, 1, n) * (log_min - log_max)), np.float64)


def log_linear_sigmas(sigma_max: float, sigma_min: float, n: int) -> Float32:
    """Like `exponential_sigmas`, in PyTorch's float32. Shape (n,)."""
    return np.exp(linspace(math.log(sigma_max), math.log(sigma_min), n))


def leading(stop: int, intervals: int, n: int, offset: int) -> Float64:
    """The n largest of the multiples k * (stop // intervals), k < intervals, descending, plus `offset`. Shape (n,)."""
    return ((np.arange(intervals) * (stop // intervals))[::-1][:n] + offset).astype(np.float64)


def trailing(stop: int, stride: float, n: int) -> Float64:
    """`stop - 1`, then down by `stride`, rounded. At most n values.

    For some n (61, 103, 121 with 1000 training timesteps) `np.arange` returns one value more; diffusers keeps it, as a
    timestep of -1. It is dropped here.
    """
    return np.round(np.arange(stop, 0, -stride))[:n] - 1


def spaced(spacing: str, stop: int, n: int, offset: int) -> Float64:
    """n timesteps in [0, stop), descending, in `linspace`, `leading` or `trailing` spacing; Lin et al. (2023), Table 2.

    `linspace` timesteps are fractional. Shape (n,) float64.
    """
    if spacing == "linspace":
        return np.linspace(0, stop - 1, n)[::-1]
    if spacing == "leading":
        return leading(stop, n, n, offset)
    return trailing(stop, stop / n, n)


def spaced_open(spacing: str, train_steps: int, stop: int, n: int, offset: int) -> Float64:
    """n integer timesteps in (0, stop), descending: the points of `spaced` for n + 1 without the last one.

    `train_steps` sets the stride of `trailing`, `stop` bounds the noisiest timestep. At most n values, float64.
    """
    if spacing == "linspace":
        return np.round(np.linspace(0, stop - 1, n + 1))[::-1][:-1]
    if spacing == "leading":
        return leading(stop, n + 1, n, offset)
    return trailing(stop, train_steps / n, n)
