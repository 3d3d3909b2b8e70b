"""Samplers with several model calls per step: Heun, DPM2, DPM2 ancestral, DPM-Solver singlestep.

Register 1 holds the sample at the start of the step.
"""

import numpy as np

from latentrt.runtime.scheduler.schedules import Options, Schedule

from .basis import NOISE, STATE, Call, Calls, half_log_snr, predict, psi
from .onestep import ancestral_split, churned


def heun(schedule: Schedule, options: Options, begin: int) -> Calls:
    """Karras et al. (2022), arXiv:2206.00364: Algorithm 2; the last step (to sigma 0) is Euler's."""
    for i in range(begin, len(schedule.timesteps)):
        s, s_next = schedule.levels[i, 1], schedule.targets[i, 1]
        x, x0, d = predict(schedule, options, i)
        if i % 2 == 0:
            yield Call(x + (s_next - s) * d, x0, kept=(x, d))
        else:
            start, first = STATE[1], STATE[2]
            step = schedule.targets[i - 1, 1] - schedule.levels[i - 1, 1]
            yield churned(Call(start + step * (first + d) / 2, x0), schedule, options, i)


def dpm2(schedule: Schedule, options: Options, begin: int) -> Calls:
    """k-diffusion's `sample_dpm_2`: the slope at the geometric mean of the two sigmas is used for the whole step."""
    for i in range(begin, len(schedule.timesteps)):
        s, s_next = schedule.levels[i, 1], schedule.targets[i, 1]
        x, x0, d = predict(schedule, options, i)
        if i % 2 == 0:  # to the middle, or to the end if the end is sigma 0
            yield Call(x + (s_next - s) * d, x0, kept=(x,))
        else:
            step = s_next - schedule.levels[i - 1, 1]
            yield churned(Call(STATE[1] + step * d, x0), schedule, options, i)


def dpm2_ancestral(schedule: Schedule, options: Options, begin: int) -> Calls:
    """k-diffusion's `sample_dpm_2_ancestral`: DPM2 down to `s_down`, then `s_up` of fresh noise."""
    for i in range(begin, len(schedule.timesteps)):
        s, s_next = schedule.levels[i, 1], schedule.targets[i, 1]
        x, x0, d = predict(schedule, options, i)
        if i % 2 == 0:
            yield Call(x + (s_next - s) * d, x0, kept=(x,))
        else:
            start = schedule.levels[i - 1, 1]
            s_down, s_up = ancestral_split(start, s_next, options["eta"])
            fresh = s_up * options["s_noise"] * NOISE
            yield Call(STATE[1] + (s_down - start) * d + fresh, x0, draws=options["eta"] > 0)


def dpm_solver_singlestep(schedule: Schedule, options: Options, begin: int) -> Calls:
    """Lu et al. (2022): DPM-Solver, arXiv:2206.00927, and DPM-Solver++, arXiv:2211.01095; singlestep, orders 1 to 3.

    A step of order k takes k calls. Call j of them yields the sample of order j from the start of the step. Registers
    2 and 3 hold the previous predictions.
    """
    data, sde = options["algorithm_type"].endswith("++"), options["algorithm_type"].startswith("sde-")
    ends = np.concatenate([schedule.levels, schedule.targets[-1:]])
    lam = half_log_snr(ends)
    for i, wanted in enumerate(singlestep_orders(options, len(schedule.timesteps))):
        if i < begin:
            continue
        order = min(wanted, i - begin + 1)
        x, x0, eps = predict(schedule, options, i)
        m = x0 if data else eps
        first = i - order + 1
        start = x if order == 1 else STATE[1]
        h = lam[i + 1] - lam[first]
        z = -h * (1 + sde) if data else h
        (a, s), (a_next, s_next) = ends[first], ends[i + 1]
        gain, carry = (a_next, s_next / s * (np.exp(-h) if sde else 1)) if data else (s_next, a_next / a)
        weights = psi(z, 3)
        if order == 1:
            change = weights[0] * m
        elif order == 2:
            slope = (m - STATE[2]) * h / (lam[i] - lam[first])
            midpoint = options["solver_type"] == "midpoint"
            change = weights[0] * STATE[2] + (weights[0] / 2 if midpoint else weights[1]) * slope
        else:
            r0, r1 = (lam[i] - lam[first]) / h, (lam[i - 1] - lam[first]) / h
            far, near = (m - STATE[3]) / r0, (STATE[2] - STATE[3]) / r1
            change = weights[0] * STATE[3]
            if options["solver_type"] == "midpoint":
                change = change + weights[1] * far
            else:
                change = change + weights[1] * (r0 * near - r1 * far) / (r0 - r1)
                change = change + 2 * weights[2] * (far - near) / (r0 - r1)
        fresh = s_next * np.sqrt(-np.expm1(-2 * h)) if sde else 0.0
        yield Call(carry * start - gain * change + fresh * NOISE, x0, kept=(start, m, STATE[2]), draws=sde)


def singlestep_orders(options: Options, calls: int) -> list[int]:
    """Order of each call: 1, 2, 3, 1, 2, 3, ... with lower orders at the end if the calls do not divide evenly.

    As in diffusers, `lower_order_final` is implied if the calls do not divide evenly or sigma ends at 0.
    """
    order, to_zero = options["solver_order"], options["final_sigmas_type"] == "zero"
    lower = options["lower_order_final"] or calls % order != 0 or to_zero
    if order == 3 and lower and calls % 3 == 0:
        orders = [1, 2, 3] * (calls // 3 - 1) + [1, 2, 1]
    elif order == 2 and lower and calls % 2 == 0:
        orders = [1, 2] * (calls // 2 - 1) + [1, 1]
    else:
        orders = (list(range(1, order + 1)) * (calls // order + 1))[:calls]
    return [*orders[:-1], 1] if to_zero else orders
