"""Samplers that use only the current model call: DDIM, DDPM, Euler, Euler ancestral, LCM, TCD, flow matching."""

import math
from collections.abc import Sequence
from dataclasses import replace

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
        guidance = _plus_plus(options, (a, s), (a_next, direction))
        yield Call(a_next * x0 + direction * eps + std * NOISE, x0, draws=eta > 0, guidance=guidance)


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
    """Karras et al. (2022), arXiv:2206.00364: Algorithm 2 without its second-order correction."""
    for i in range(begin, len(schedule.timesteps)):
        s, s_next = schedule.levels[i, 1], schedule.targets[i, 1]
        x, x0, d = predict(schedule, options, i)
        guidance = _plus_plus(options, schedule.levels[i], schedule.targets[i])
        yield churned(Call(x + (s_next - s) * d, x0, guidance=guidance), schedule, options, i)


def euler_ancestral(schedule: Schedule, options: Options, begin: int) -> Calls:
    """k-diffusion's `sample_euler_ancestral`: an Euler step down to `s_down`, then `s_up` of fresh noise."""
    for i in range(begin, len(schedule.timesteps)):
        s, s_next = schedule.levels[i, 1], schedule.targets[i, 1]
        x, x0, d = predict(schedule, options, i)
        s_down, s_up = ancestral_split(s, s_next, options["eta"])
        fresh = s_up * options["s_noise"] * NOISE
        guidance = _plus_plus(options, schedule.levels[i], (1.0, s_down))
        yield Call(x + (s_down - s) * d + fresh, x0, draws=options["eta"] > 0, guidance=guidance)


def ancestral_split(s: float, s_next: float, eta: float = 1.0) -> tuple[float, float]:
    """`s_down` and `s_up`, `s_down**2 + s_up**2 = s_next**2`: k-diffusion's `get_ancestral_step`."""
    s_up = min(s_next, eta * s_next * math.sqrt(max(1 - (s_next / s) ** 2, 0.0)))
    return s_next**2 / s if eta == 1 else math.sqrt(s_next**2 - s_up**2), s_up


def churned(call: Call, schedule: Schedule, options: Options, i: int) -> Call:
    """The call, and fresh noise up to the level of the next one, where that is higher (`s_churn`)."""
    if i == len(schedule.timesteps) - 1 or schedule.levels[i + 1, 1] <= schedule.targets[i, 1]:
        return call
    rise = options["s_noise"] * math.sqrt(schedule.levels[i + 1, 1] ** 2 - schedule.targets[i, 1] ** 2)
    return replace(call, sample=call.sample + rise * NOISE, draws=True)


def _plus_plus(options: Options, level: Sequence[float], target: Sequence[float]) -> tuple[float, float]:
    """The guidance of CFG++, arXiv:2406.08070: noise is added back as the unguided prediction says.

    A step that is linear in the clean latents and the noise predicted, `a_next x0 + s_next eps`, does so if all of it
    is guided more strongly.
    """
    if not options.get("cfg_pp"):
        return 0.0, 1.0
    (a, s), (a_next, s_next) = level, target
    return 0.0, a_next * s / (a_next * s - s_next * a)


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
