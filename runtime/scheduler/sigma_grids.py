"""Schedule types as web UIs name them: n sigmas between the ends of a training table, then 0.

The names are those of k-diffusion, AUTOMATIC1111's web UI and ComfyUI; where these differ, the function says whose it
is. Sigmas between training timesteps are interpolated in log sigma, as in k-diffusion's `DiscreteSchedule`.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from latentrt.runtime.errors import SchedulerError

from .sigmas import KARRAS_RHO, Float64, Floats, beta_quantiles, karras_sigmas, timestep_from_sigma

# arXiv:2404.14507: the noise levels that NVIDIA published for 10 steps, as in AUTOMATIC1111's web UI.
ALIGN_YOUR_STEPS = (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029)
ALIGN_YOUR_STEPS_SDXL = (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029)
_LINEAR_QUADRATIC_THRESHOLD = 0.025


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """The sigmas of a model's training timesteps, and the part of them that a schedule covers."""

    sigmas: Float64  # (T,), rising
    low: float
    high: float

    def timestep(self, sigma: float) -> float:
        return float(timestep_from_sigma(np.array([sigma]), np.log(self.sigmas))[0])

    def at(self, timesteps: Floats) -> Float64:
        """Sigmas at fractional timesteps."""
        return np.asarray(np.exp(np.interp(timesteps, np.arange(len(self.sigmas)), np.log(self.sigmas))), np.float64)


Options = Mapping[str, Any]
Grid = Callable[[Table, int, Options], Float64]


def karras(table: Table, n: int, options: Options) -> Float64:
    """arXiv:2206.00364, equation 5; `schedule_rho` is its rho, 7 by default."""
    return karras_sigmas(table.high, table.low, n, options["schedule_rho"] or KARRAS_RHO)


def polyexponential(table: Table, n: int, options: Options) -> Float64:
    """k-diffusion: a polynomial of degree `schedule_rho`, 1 by default, in log sigma."""
    ramp = np.linspace(1, 0, n) ** (options["schedule_rho"] or 1.0)
    return np.asarray(np.exp(math.log(table.low) + ramp * math.log(table.high / table.low)), np.float64)


def exponential(table: Table, n: int, options: Options) -> Float64:
    """k-diffusion: evenly spaced in log sigma."""
    return polyexponential(table, n, {**options, "schedule_rho": 1.0})


def normal(table: Table, n: int, _options: Options) -> Float64:
    """Evenly spaced timesteps with both ends; "Uniform" and "Normal" in web UIs."""
    return table.at(np.linspace(table.timestep(table.high), table.timestep(table.low), n))


def sgm_uniform(table: Table, n: int, _options: Options) -> Float64:
    """Evenly spaced timesteps without the lowest one, as in Stability's generative-models."""
    return table.at(np.linspace(table.timestep(table.high), table.timestep(table.low), n + 1)[:-1])


def simple(table: Table, n: int, _options: Options) -> Float64:
    """ComfyUI: every (T / n)-th training sigma, from the highest on."""
    behind = (np.arange(n) * (len(table.sigmas) / n)).astype(np.int64)
    return table.sigmas[-1 - behind]


def ddim_uniform(table: Table, n: int, _options: Options) -> Float64:
    """ComfyUI: every (T // n)-th training sigma from the second on, which may be more than n."""
    return table.sigmas[1 :: max(len(table.sigmas) // n, 1)][::-1]


def kl_optimal(table: Table, n: int, _options: Options) -> Float64:
    """arXiv:2404.14507, evenly spaced in arctan sigma. ComfyUI's, which ends at 0; the web UI's ends at the lowest."""
    share = np.linspace(0, 1, n)
    return np.asarray(np.tan(share * math.atan(table.low) + (1 - share) * math.atan(table.high)), np.float64)


def align_your_steps(_table: Table, n: int, _options: Options) -> Float64:
    """For Stable Diffusion 1.x, log-linear between its 11 levels. AUTOMATIC1111's; ComfyUI replaces the last by 0."""
    return _between(ALIGN_YOUR_STEPS, n)


def align_your_steps_sdxl(_table: Table, n: int, _options: Options) -> Float64:
    """`align_your_steps` with the levels of Stable Diffusion XL."""
    return _between(ALIGN_YOUR_STEPS_SDXL, n)


def _between(levels: tuple[float, ...], n: int) -> Float64:
    return np.exp(np.interp(np.linspace(0, len(levels) - 1, n), np.arange(len(levels)), np.log(levels)))


def beta(table: Table, n: int, options: Options) -> Float64:
    """arXiv:2407.12173: quantiles of a beta distribution over sigma. AUTOMATIC1111's, and that of diffusers."""
    shares = beta_quantiles(options["schedule_alpha"], options["schedule_beta"], 1 - np.linspace(0, 1, n))
    return np.asarray(table.low + shares * (table.high - table.low), np.float64)


def beta_timesteps(table: Table, n: int, options: Options) -> Float64:
    """ComfyUI's `beta`: quantiles over the training timesteps, rounded; equal ones count once, so it may be fewer."""
    shares = beta_quantiles(
        options["schedule_alpha"], options["schedule_beta"], 1 - np.linspace(0, 1, n, endpoint=False)
    )
    times = np.round(shares * (len(table.sigmas) - 1)).astype(np.int64)
    return table.sigmas[[t for i, t in enumerate(times) if i == 0 or t != times[i - 1]]]


def linear_quadratic(table: Table, n: int, _options: Options) -> Float64:
    """ComfyUI, after Genmo's Mochi: the first half of the steps falls linearly by 2.5 %, the others quadratically."""
    half = n // 2
    if half == 0:
        return np.array([table.high])
    slope, rest = _LINEAR_QUADRATIC_THRESHOLD / half, n - half
    curve = (half - _LINEAR_QUADRATIC_THRESHOLD * n) / (half * rest**2)
    first, second = np.arange(half), np.arange(half, n)
    bend = slope - 2 * curve * half  # the two parts meet with the same slope
    fallen = np.concatenate([slope * first, curve * second**2 + bend * second + curve * half**2])
    return np.asarray((1 - fallen) * table.high, np.float64)


GRIDS: Mapping[str, Grid] = MappingProxyType(
    {
        grid.__name__: grid
        for grid in (
            karras,
            exponential,
            polyexponential,
            normal,
            simple,
            sgm_uniform,
            ddim_uniform,
            kl_optimal,
            align_your_steps,
            align_your_steps_sdxl,
            beta,
            beta_timesteps,
            linear_quadratic,
        )
    }
)


def sigma_grid(options: Options, count: int, sigmas: Floats) -> Float64:
    """The sigmas of `options["schedule_type"]`, with the final one.

    Args:
        count: number of steps; some types give a few more or fewer.
        sigmas: (T,) of the training timesteps, rising.

    Returns: (steps + 1,) float64.
    """
    table = Table(
        np.asarray(sigmas, np.float64),
        options.get("sigma_min") or float(sigmas[0]),
        options.get("sigma_max") or float(sigmas[-1]),
    )
    drops = options["discard_next_to_last"]
    line = GRIDS[options["schedule_type"]](table, count + drops, options)
    line = line[: len(line) - drops]
    if not (np.diff(line) < 0).all():
        raise SchedulerError(
            f"{options['schedule_type']} with {count} steps repeats a sigma, which gives a step of length 0: lower "
            "num_inference_steps"
        )
    ends_low = options.get("final_sigmas_type", "zero") == "sigma_min"
    return np.append(line, sigmas[0] if ends_low else 0.0)
