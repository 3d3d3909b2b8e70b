"""Samplers that use only the current model call: DDIM, DDPM, Euler, Euler ancestral, LCM, TCD, flow matching."""

import math

from latentrt.runtime.scheduler.schedules import Options, Schedule

from .basis import MODEL, NOISE, STATE, Call, Calls, predict


def ddim(schedule: Schedule, options: Options, begin: int) -> Calls:
    """Song et al. (2021), arXiv:2010.02502: equation 12, with sigma_t of equation 16 scaled by eta."""
    eta = options["eta"]
    for i in range(begin, len(schedule.timesteps)):
        (a, s), (a_next, s_next) = schedule.levels[i], schedule.targets[i]
        _, x0, eps = predict(schedule, options, i)
        std = eta * s_next / s * math.sqrt(max(1 - (a / a_next) ** 2, 0.0))
        direction = math.sqrt(max(s_next**2 - std**2, 0.0))
        yield Call(a_next * x0 + direction * eps + std * NOISE, x0, draws=eta > 0)


def ddpm(schedule: Schedule, options: Options, begin: int) -> Calls:
    """Ho et al. (2020), arXiv:2006.11239: the posterior of equation 7, with variance beta-tilde or ("large") beta."""
    for i in range(begin, len(schedule.timesteps)):
        (a, s), (a_next, s_next) = schedule.levels[i], schedule.targets[i]
        x, x0, _ = predict(schedule, options, i)
        beta = 1 - (a / a_next) ** 2
        mean = a_next * beta / s**2 * x0 + a / a_next * (s_next / s) ** 2 * x
        draws = bool(schedule.timesteps[i] > 0)
        variance = beta if options["variance_type"] == "fixed_large" else (s_next / s) ** 2 * beta
        yield Call(mean + draws * math.sqrt(max(variance, 1e-20)) * NOISE, x0, draws=draws)


def euler(schedule: Schedule, options: Options, begin: int) -> Calls:
    """Karras et al. (2022), arXiv:2206.00364: Algorithm 2 without churn and without its second-order correction."""
    for i in range(begin, len(schedule.timesteps)):
        s, s_next = schedule.levels[i, 1], schedule.targets[i, 1]
        x, x0, d = predict(schedule, options, i)
        yield Call(x + (s_next - s) * d, x0)


def euler_ancestral(schedule: Schedule, options: Options, begin: int) -> Calls:
    """k-diffusion's `sample_euler_ancestral`: an Euler step down to `s_down`, then `s_up` of fresh noise."""
    for i in range(begin, len(schedule.timesteps)):
        s, s_next = schedule.levels[i, 1], schedule.targets[i, 1]
        x, x0, d = predict(schedule, options, i)
        s_down, s_up = ancestral_split(s, s_next)
        yield Call(x + (s_down - s) * d + s_up * NOISE, x0, draws=True)


def ancestral_split(s: float, s_next: float) -> tuple[float, float]:
    """`s_down` and `s_up`, `s_down**2 + s_up**2 = s_next**2`: k-diffusion's `get_ancestral_step` with eta 1."""
    return s_next**2 / s, s_next * math.sqrt(max(1 - (s_next / s) ** 2, 0.0))


def lcm(schedule: Schedule, options: Options, begin: int) -> Calls:
    """Luo et al. (2023), arXiv:2310.04378: multistep consistency sampling, with the boundary condition of section 3."""
    sigma_data = 0.5
    for i in range(begin, len(schedule.timesteps)):
        a_next, s_next = schedule.targets[i]
        x, x0, _ = predict(schedule, options, i)
        t = schedule.timesteps[i] * options["timestep_scaling"]
        c_skip, c_out = sigma_data**2 / (t**2 + sigma_data**2), t / math.hypot(t, sigma_data)
        clean = c_out * x0 + c_skip * x
        last = i == len(schedule.timesteps) - 1
        yield Call(clean if last else a_next * clean + s_next * NOISE, clean, draws=not last)


def tcd(schedule: Schedule, options: Options, begin: int) -> Calls:
    """Zheng et al. (2024), arXiv:2402.19159: strategic stochastic sampling; eta is the paper's gamma.

    A call steps down to its `anchors` level, which is less noisy than its target; fresh noise then raises it to the
    target.
    """
    for i in range(begin, len(schedule.timesteps)):
        (a_low, s_low), (a_next, _) = schedule.anchors[i], schedule.targets[i]
        _, x0, eps = predict(schedule, options, i)
        below = a_low * x0 + s_low * eps
        if options["eta"] == 0 or i == len(schedule.timesteps) - 1:
            yield Call(below, x0)
        else:
            ratio = a_next / a_low
            yield Call(ratio * below + math.sqrt(max(1 - ratio**2, 0.0)) * NOISE, x0, draws=True)


def flow_euler(schedule: Schedule, options: Options, begin: int) -> Calls:
    """Euler on the straight paths of flow matching, arXiv:2403.03206; the model predicts the velocity noise - clean."""
    for i in range(begin, len(schedule.timesteps)):
        s, s_next = schedule.levels[i, 1], schedule.targets[i, 1]
        x, x0 = STATE[0], STATE[0] - s * MODEL
        if options["stochastic_sampling"]:
            yield Call((1 - s_next) * x0 + s_next * NOISE, x0, draws=True)
        else:
            yield Call(x + (s_next - s) * MODEL, x0)
