"""The samplers, each written once in its textbook form on basis vectors, and the table that names them.

A sampler walks along a `Schedule` and yields, for every model call, where the sample goes. Because everything here is
linear, it computes with basis vectors instead of pictures: `STATE[k]` stands for register k, `MODEL` for the model's
output and `NOISE` for a fresh draw. A sum of them *is* a row of the plan's coefficients. Knows nothing of timestep
spacings, of scaling the model's input and of how plans are run.

Adding a sampler takes one function and one row in `SAMPLERS`.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np

from .schedules import Options, Schedule, log_snr_schedule, sigma_schedule, strided_schedule
from .sigmas import Float64

REGISTERS = 6
BASIS: Float64 = np.eye(REGISTERS + 2)
BASIS.flags.writeable = False
STATE, MODEL, NOISE = BASIS[:REGISTERS], BASIS[REGISTERS], BASIS[REGISTERS + 1]


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """What one model call computes: linear forms of shape (REGISTERS + 2,) over the state, model output and noise.

    Attributes:
        sample: the next sample, not scaled for the model.
        clean: the predicted clean latents.
        kept: registers 1, 2, ...: past quantities for later calls.
        draws: whether diffusers draws noise here, used or not.
    """

    sample: Float64
    clean: Float64
    kept: tuple[Float64, ...] = ()
    draws: bool = False


@dataclass(frozen=True, slots=True)
class Sampler:
    """One row of `SAMPLERS`.

    Attributes:
        schedule: lays out the steps.
        solve: `(schedule, options, begin)`, yields one `Call` for each model call from index `begin` on. Options hold
            `eta` too.
        names: short name -> options that it fixes; a key ending in `?` is only set where the config lacks it.
        takes: which of `eta`, `timesteps`, `sigmas` the class takes.
        order: model calls per step, as diffusers counts them.
    """

    schedule: Callable[..., Schedule]
    solve: Callable[[Schedule, Options, int], Iterator[Call]]
    names: Mapping[str, Mapping[str, Any]]
    takes: frozenset[str] = field(default=frozenset())
    order: int = 1


def predict(schedule: Schedule, options: Options, i: int) -> tuple[Float64, Float64, Float64]:
    """Sample, predicted clean latents and predicted noise at call i, as linear forms.

    The v-prediction is that of Salimans and Ho (2022), arXiv:2202.00512, for a variance-preserving model input.
    """
    alpha, sigma = schedule.levels[i]
    size = math.hypot(alpha, sigma)
    x = STATE[0] * size
    kind = options["prediction_type"]
    if kind == "epsilon":
        return x, (x - sigma * MODEL) / alpha, MODEL
    if kind == "sample":
        return x, MODEL, (x - alpha * MODEL) / sigma
    clean = (alpha * STATE[0] - sigma * MODEL) / size
    noise = (alpha * MODEL + sigma * STATE[0]) / size
    return x, clean, noise


def ddim(schedule: Schedule, options: Options, begin: int) -> Iterator[Call]:
    """Song et al. (2021), arXiv:2010.02502: equation 12, with sigma_t of equation 16 scaled by eta."""
    eta = options["eta"]
    for i in range(begin, len(schedule.timesteps)):
        (a, s), (a_next, s_next) = schedule.levels[i], schedule.targets[i]
        _, x0, eps = predict(schedule, options, i)
        std = eta * s_next / s * math.sqrt(max(1 - (a / a_next) ** 2, 0.0))
        direction = math.sqrt(max(s_next**2 - std**2, 0.0))
        yield Call(a_next * x0 + direction * eps + std * NOISE, x0, draws=eta > 0)


def euler(schedule: Schedule, options: Options, begin: int) -> Iterator[Call]:
    """Karras et al. (2022), arXiv:2206.00364: Algorithm 2 without churn and without its second-order correction."""
    for i in range(begin, len(schedule.timesteps)):
        s, s_next = schedule.levels[i, 1], schedule.targets[i, 1]
        x, x0, d = predict(schedule, options, i)
        yield Call(x + (s_next - s) * d, x0)


def euler_ancestral(schedule: Schedule, options: Options, begin: int) -> Iterator[Call]:
    """k-diffusion's `sample_euler_ancestral`: an Euler step down to `s_down`, then `s_up` of fresh noise."""
    for i in range(begin, len(schedule.timesteps)):
        s, s_next = schedule.levels[i, 1], schedule.targets[i, 1]
        x, x0, d = predict(schedule, options, i)
        s_up = s_next * math.sqrt(max(1 - (s_next / s) ** 2, 0.0))
        s_down = s_next**2 / s
        yield Call(x + (s_down - s) * d + s_up * NOISE, x0, draws=True)


def dpm_solver(schedule: Schedule, options: Options, begin: int) -> Iterator[Call]:
    """Lu et al. (2022): DPM-Solver, arXiv:2206.00927, and DPM-Solver++, arXiv:2211.01095; multistep, orders 1 to 3.

    DPM-Solver++ (Algorithm 2 there) expands the predicted clean latents in half log-SNR, DPM-Solver the predicted
    noise: `x_next = carry x - gain (psi_0 D_0 + psi_1 D_1 + psi_2 D_2)`. The `sde-` kinds add noise. Registers 1 and 2
    hold the two predictions before. Order 3 is that of the authors' code, where D_2 is half of h**2 times the second
    derivative, so that it converges as order 2 does.
    """
    data, sde = options["algorithm_type"].endswith("++"), options["algorithm_type"].startswith("sde-")
    ends = np.concatenate([schedule.levels, schedule.targets[-1:]])
    lam = np.log(ends[:, 0] / ends[:, 1])
    for i in range(begin, len(schedule.timesteps)):
        (a, s), (a_next, s_next) = ends[i], ends[i + 1]
        x, x0, eps = predict(schedule, options, i)
        h = lam[i + 1] - lam[i]
        if data:
            m, z, gain, carry = x0, -h * (1 + sde), a_next, s_next / s * (np.exp(-h) if sde else 1)
        else:
            m, z, gain, carry = eps, h, s_next * (1 + sde), a_next / a
        order = _dpm_order(options, len(schedule.timesteps), i, begin)
        psi = _psi(z, halved=order == 2 and options["solver_type"] == "midpoint")
        x_next = carry * x
        for weight, difference in zip(psi, _differences(lam, i, m, order), strict=False):
            x_next = x_next - gain * weight * difference
        fresh = s_next * np.sqrt(abs(np.expm1(-2 * h if data else 2 * h))) if sde else 0.0
        yield Call(x_next + fresh * NOISE, x0, kept=(m, STATE[1]), draws=sde)


def _dpm_order(options: Options, calls: int, i: int, begin: int) -> int:
    """Order of step i: it builds up from `begin`, and falls at the end of a short run or where sigma becomes 0."""
    few = options["lower_order_final"] and calls < 15
    order: int = min(options["solver_order"], i - begin + 1)
    if i == calls - 1 and (few or options["euler_at_final"] or options["final_sigmas_type"] == "zero"):
        return 1
    return min(order, 2) if few and i == calls - 2 else order


def _psi(z: float, halved: bool) -> tuple[float, float, float]:
    """Weights of D_0, D_1 and D_2; the midpoint rule approximates the second by half of the first."""
    if z == 0:
        return 0.0, 0.0, 0.0
    psi = np.expm1(z)
    return psi, psi / 2 if halved else psi / z - 1, (psi - z) / z**2 - 0.5


def _differences(lam: Float64, i: int, m: Float64, order: int) -> tuple[Float64, ...]:
    """D_0, D_1, ... up to the order: divided differences of the predictions at steps i, i - 1, i - 2, in half log-SNR.

    They are scaled by the step `h = lam[i + 1] - lam[i]`, as in the papers.
    """
    h = lam[i + 1] - lam[i]
    if order == 1 or h == 0:
        return (m,)
    r0 = (lam[i] - lam[i - 1]) / h
    d1 = (m - STATE[1]) / r0
    if order == 2:
        return m, d1
    r1 = (lam[i - 1] - lam[i - 2]) / h
    d2 = (d1 - (STATE[1] - STATE[2]) / r1) / (r0 + r1)
    return m, d1 + r0 * d2, d2


SAMPLERS: Mapping[str, Sampler] = MappingProxyType(
    {
        "DDIMScheduler": Sampler(
            strided_schedule, ddim, names={"ddim": {"clip_sample?": False}}, takes=frozenset({"eta"})
        ),
        "EulerDiscreteScheduler": Sampler(
            sigma_schedule, euler, names={"euler": {}}, takes=frozenset({"timesteps", "sigmas"})
        ),
        "EulerAncestralDiscreteScheduler": Sampler(sigma_schedule, euler_ancestral, names={"euler_a": {}}),
        "DPMSolverMultistepScheduler": Sampler(
            log_snr_schedule,
            dpm_solver,
            names={
                "dpm++_2m": {"algorithm_type": "dpmsolver++", "solver_order": 2},
                "dpm++_2m_sde": {"algorithm_type": "sde-dpmsolver++", "solver_order": 2},
                "dpm++_3m": {"algorithm_type": "dpmsolver++", "solver_order": 3},
            },
            takes=frozenset({"timesteps"}),
        ),
    }
)
