"""Schedule types against k-diffusion, SciPy, and the definitions of the web UIs written out with loops."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from support.k_diffusion import sampling

from latentrt.runtime.errors import SchedulerError
from latentrt.runtime.scheduler import Plan, resolve
from latentrt.runtime.scheduler.config import checked_options
from latentrt.runtime.scheduler.sigma_grids import GRIDS, sigma_grid
from latentrt.runtime.scheduler.spacings import alphas_cumprod

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
CHECKPOINT = {"_class_name": "PNDMScheduler", **BETAS}
STEPS = (1, 2, 7, 10, 30)


def table() -> Any:
    bar = alphas_cumprod(checked_options({"_class_name": "EulerDiscreteScheduler", **BETAS})).astype(np.float64)
    return np.sqrt((1 - bar) / bar)


SIGMAS = table()
LOW, HIGH = float(SIGMAS[0]), float(SIGMAS[-1])


def at(t: float) -> float:
    """k-diffusion's `t_to_sigma`."""
    low, high = math.floor(t), math.ceil(t)
    return math.exp((1 - t + low) * math.log(SIGMAS[low]) + (t - low) * math.log(SIGMAS[high]))


def loglinear(levels: list[float], n: int) -> list[float]:
    """NVIDIA's recipe for other numbers of steps: interpolate the logarithms of the rising levels."""
    rising = np.log(levels[::-1])
    return list(np.exp(np.interp(np.linspace(0, 1, n), np.linspace(0, 1, len(levels)), rising))[::-1])


def linear_quadratic(n: int) -> list[float]:
    """A line through 0 and 0.025 at half, then the parabola that leaves it smoothly and reaches 1 at n."""
    half = n // 2
    if not half:
        return [HIGH]
    rise = 0.025 / half
    rest = [rise * i for i in range(half)]
    left = n - half
    bend = (1 - 0.025 - rise * left) / left**2
    return [HIGH * (1 - v) for v in [*rest, *(0.025 + rise * i + bend * i * i for i in range(left))]]


def ddim_uniform(n: int) -> list[float]:
    found, at = [], 1
    while at < len(SIGMAS):
        found.append(SIGMAS[at])
        at += max(len(SIGMAS) // n, 1)
    return found[::-1]


def beta_timesteps(n: int) -> list[float]:
    found: list[int] = []
    for k in range(n):
        t = int(np.rint(stats.beta.ppf(1 - k / n, 0.6, 0.6) * (len(SIGMAS) - 1)))
        if t not in found[-1:]:
            found.append(t)
    return [SIGMAS[t] for t in found]


K = sampling()
EXPECTED: dict[str, Any] = {
    "karras": lambda n: K.get_sigmas_karras(n, LOW, HIGH)[:-1].tolist(),
    "exponential": lambda n: K.get_sigmas_exponential(n, LOW, HIGH)[:-1].tolist(),
    "polyexponential": lambda n: K.get_sigmas_polyexponential(n, LOW, HIGH)[:-1].tolist(),
    "normal": lambda n: [at(t) for t in np.linspace(999, 0, n)],
    "sgm_uniform": lambda n: [at(t) for t in np.linspace(999, 0, n + 1)[:-1]],
    "simple": lambda n: [SIGMAS[-(1 + int(k * (1000 / n)))] for k in range(n)],
    "ddim_uniform": ddim_uniform,
    "kl_optimal": lambda n: [
        math.tan((k / max(n - 1, 1)) * math.atan(LOW) + (1 - k / max(n - 1, 1)) * math.atan(HIGH)) for k in range(n)
    ],
    "align_your_steps": lambda n: loglinear(
        [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029], n
    ),
    "align_your_steps_sdxl": lambda n: loglinear(
        [14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029], n
    ),
    "beta": lambda n: [LOW + q * (HIGH - LOW) for q in stats.beta.ppf(1 - np.linspace(0, 1, n), 0.6, 0.6)],
    "beta_timesteps": beta_timesteps,
    "linear_quadratic": linear_quadratic,
}


def line(kind: str, steps: int, **options: Any) -> Any:
    config = resolve("euler", CHECKPOINT) | {"schedule_type": kind} | options
    return sigma_grid(checked_options(config), steps, SIGMAS.astype(np.float32))


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("kind", GRIDS)
def test_sigmas_are_those_of_the_definition(kind: str, steps: int) -> None:
    torch.set_default_dtype(torch.float64)
    expected = EXPECTED[kind](steps)
    torch.set_default_dtype(torch.float32)
    if kind.startswith("align") and steps == 1:
        expected = [14.615]  # NVIDIA's recipe gives the lowest
    np.testing.assert_allclose(line(kind, steps), [*expected, 0.0], rtol=1e-6)


def test_parameters() -> None:
    np.testing.assert_allclose(
        line("karras", 9, schedule_rho=3.0)[:-1], K.get_sigmas_karras(9, LOW, HIGH, rho=3.0)[:-1], rtol=1e-5
    )
    np.testing.assert_allclose(
        line("polyexponential", 9, schedule_rho=1.7)[:-1],
        K.get_sigmas_polyexponential(9, LOW, HIGH, rho=1.7)[:-1],
        rtol=1e-5,
    )
    quantiles = stats.beta.ppf(1 - np.linspace(0, 1, 9), 0.3, 2.5)
    np.testing.assert_allclose(
        line("beta", 9, schedule_alpha=0.3, schedule_beta=2.5)[:-1], LOW + quantiles * (HIGH - LOW), rtol=1e-6
    )
    assert line("exponential", 5, sigma_min=0.1, sigma_max=8.0)[[0, 4]] == pytest.approx([8.0, 0.1])
    assert line("karras", 5, final_sigmas_type="sigma_min")[-1] == pytest.approx(LOW)


def test_the_last_sigma_but_one_may_be_left_out() -> None:
    whole = line("karras", 11)
    np.testing.assert_allclose(line("karras", 10, discard_next_to_last=True), [*whole[:10], 0.0])


@pytest.mark.parametrize(("steps", "calls"), [(20, 20), (30, 31), (26, 27), (1000, 999)])
def test_ddim_uniform_may_give_more_steps(steps: int, calls: int) -> None:
    assert len(Plan.from_config(resolve("euler_ddim_uniform", CHECKPOINT), steps)) == calls


def test_names_of_samplers_take_every_schedule_type() -> None:
    for kind in GRIDS:
        for name in ("euler_a", "dpm++_2m", "unipc", "deis", "lms", "restart", "heun", "dpm2_a", "sa_solver"):
            plan = Plan.from_config(resolve(f"{name}_{kind}", CHECKPOINT), 8)
            assert (plan.noise_levels[-1, 1] == 0) == (name not in ("deis", "sa_solver")), (name, kind)


def test_a_repeated_sigma_is_refused() -> None:
    with pytest.raises(SchedulerError, match="schedule_type='simple'"):
        Plan.from_config(resolve("euler_simple", CHECKPOINT), timesteps=[900, 100])
    small = {"_class_name": "EulerDiscreteScheduler", "num_train_timesteps": 10, "schedule_type": "normal"}
    with pytest.raises(SchedulerError, match="repeats a sigma"):
        Plan.from_config(small | {"sigma_min": 1.0, "sigma_max": 1.0}, 4)
