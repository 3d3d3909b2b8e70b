"""Samplers in sigma that only web UIs have: Heun++, iPNDM, gradient estimation, Restart, DPM-Solver-fast.

They follow the slope dx/dsigma and lay out their own calls. Registers 1 to 4 hold the sample at the start of a step
and past slopes.
"""

import itertools
import math
from collections.abc import Sequence

import numpy as np

from latentrt.runtime.scheduler.sigmas import Float64, karras_sigmas

from .basis import NOISE, STATE, Call, Calls, Walk
from .onestep import ancestral_split

# With zero terminal SNR the first sigma is 4096. A slope there says nothing of the slopes after it, so their mean over
# so long a step draws noise; Euler's step from pure noise is exact.
BLIND = 100.0


def heunpp2(walk: Walk) -> Calls:
    """Heun's rule over two steps ahead, with weights by sigma; ComfyUI's `sample_heunpp2`, which cites Carzit.

    The last step is Euler's, and one from `BLIND`; the last but one has two calls, the others three.
    """
    ends = [*map(float, walk.sigmas)]
    highest = next((sigma for sigma in ends if sigma < BLIND), BLIND)
    for i, (s, s_next) in enumerate(walk.steps()):
        x, x0, d = walk.predict(s)
        euler = x + (s_next - s) * d
        if i == len(ends) - 2 or s > BLIND:
            yield Call(euler, x0, sigma=s)
            continue
        yield Call(euler, x0, kept=(x, d), sigma=s)
        x_2, x0, d_2 = walk.predict(s_next)
        if i == len(ends) - 3:
            share = s_next / (2 * highest)
            yield Call(STATE[1] + (s_next - s) * ((1 - share) * STATE[2] + share * d_2), x0, sigma=s_next)
            continue
        s_far = ends[i + 2]
        yield Call(x_2 + (s_far - s_next) * d_2, x0, kept=(STATE[1], STATE[2], d_2), sigma=s_next)
        _, x0, d_3 = walk.predict(s_far)
        near, far = s_next / (3 * highest), s_far / (3 * highest)
        slope = (1 - near - far) * STATE[2] + near * STATE[3] + far * d_3
        yield Call(STATE[1] + (s_next - s) * slope, x0, sigma=s_far)


_ADAMS = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


def ipndm(walk: Walk) -> Calls:
    """Improved PNDM, arXiv:2204.13902: Adams-Bashforth up to order 4 as if steps were equal; the last step is Euler's.

    With `variable_steps`, the weights of zju-pi's `ipndm_v_sampler`. Registers 1 to 3 hold past slopes.
    """
    ends = walk.sigmas
    for i, (s, s_next) in enumerate(walk.steps()):
        x, x0, d = walk.predict(s)
        weights: Sequence[float] = _ADAMS[min(i, 3)]
        if walk.options["variable_steps"]:
            weights = _variable_weights(np.diff(ends)[max(i - 3, 0) : i + 1][::-1])
        if s_next == 0:
            weights = _ADAMS[0]
        slope = sum((w * past for w, past in zip(weights, (d, *STATE[1:4]), strict=False)), np.zeros_like(d))
        yield Call(x + (s_next - s) * slope, x0, kept=(d, STATE[1], STATE[2]), sigma=s)


def _variable_weights(steps: Float64) -> tuple[float, ...]:
    """Weights of the slopes at the last calls, newest first, from as many step lengths, newest first.

    From order 3 on these are not quite Adams-Bashforth's (`lms` has those): a bracket of the paper's code stands one
    factor too far right, and pictures made with it are what the name stands for.
    """
    h, *past = map(float, steps)
    if not past:
        return (1.0,)
    h1, *past = past
    first, second = (2 + h / h1) / 2, -h / h1 / 2
    if not past:
        return first, second
    h2, *past = past
    ratio = h1 / h2
    third = (1 - h / (3 * (h + h1)) * (h * (h + h1)) / (h1 * (h1 + h2))) / 2
    if not past:
        return first + third, second - (1 + ratio) * third, third * ratio
    (h3,) = past
    fourth = (1 - h / (3 * (h + h1))) / 2 + (1 - h / (2 * (h + h1))) * h / (6 * (h + h1 + h2))
    fourth *= h * (h + h1) * (h + h1 + h2) / (h1 * (h1 + h2) * (h1 + h2 + h3))
    far = h1 * (h1 + h2) / (h2 * (h2 + h3))
    return (
        first + third + fourth,
        second - (1 + ratio) * third - (1 + ratio + far) * fourth,
        third * ratio + (ratio + far * (1 + h2 / h3)) * fourth,
        -fourth * far * ratio,
    )


def gradient_estimation(walk: Walk) -> Calls:
    """Permenter and Yuan (2024), arXiv:2306.04848, section 5 with gamma 2: the slope runs ahead of the last one.

    Register 1 holds the last slope.
    """
    for i, (s, s_next) in enumerate(walk.steps()):
        x, x0, d = walk.predict(s)
        ahead = d if i == 0 or s_next == 0 else 2 * d - STATE[1]
        yield Call(x + (s_next - s) * ahead, x0, kept=(d,), sigma=s)


def restart(walk: Walk) -> Calls:
    """Xu et al. (2023), arXiv:2306.14878: Heun steps; from 20 steps on the low part is drawn again from more noise.

    The defaults are AUTOMATIC1111's: from 20 steps on, Karras sigmas, and once back from 0.1 to 2 in 9 steps; from 36
    steps on twice, in a quarter of the steps. A step from `BLIND` is Euler's.
    """
    steps = restart_steps(walk.sigmas)
    for (s, s_next), (s_after, _) in itertools.pairwise([*steps, (0.0, 0.0)]):
        x, x0, d = walk.predict(s)
        euler = x + (s_next - s) * d
        if s_next == 0 or s > BLIND:
            yield Call(euler, x0, sigma=s)
            continue
        yield Call(euler, x0, kept=(x, d), sigma=s)
        _, x0, d_2 = walk.predict(s_next)
        end = STATE[1] + (s_next - s) * (STATE[2] + d_2) / 2
        rise = walk.options["s_noise"] * math.sqrt(max(s_after**2 - s_next**2, 0.0))
        yield Call(end + rise * NOISE, x0, draws=rise > 0, sigma=s_next)


def restart_steps(sigmas: Float64) -> list[tuple[float, float]]:
    """The steps of `restart`, sigmas before and after each; a step that begins higher than the last ended rises."""
    count = len(sigmas) - 1
    if count < 20:
        return list(itertools.pairwise(map(float, sigmas)))
    again, times = (9, 1) if count < 36 else (count // 4, 2)
    line = np.append(karras_sigmas(float(sigmas[0]), float(sigmas[-2]), count - again * times), 0.0)
    steps = list(itertools.pairwise(map(float, line)))
    low, high = int(np.abs(line - 0.1).argmin()), int(np.abs(line - 2).argmin())
    if high >= low:  # a part of a schedule may begin below the restart
        return steps
    loop = karras_sigmas(float(line[high]), float(line[low]), again + 1)
    return steps[:low] + list(itertools.pairwise(map(float, loop))) * times + steps[low:]


def dpm_fast(walk: Walk) -> Calls:
    """Lu et al. (2022), arXiv:2206.00927, appendix D.3: DPM-Solver of order 3 in as many calls as there are steps.

    As in k-diffusion it spaces its own steps evenly in log sigma, down to the lowest training sigma. Registers 1 and 2
    hold the sample and the slope at the start of a step.
    """
    calls, eta = len(walk.sigmas) - 1, walk.options["eta"]
    count = calls // 3 + 1
    orders = [3] * (count - 2) + [2, 1] if calls % 3 == 0 else [3] * (count - 1) + [calls % 3]
    lowest = float(walk.table[0])
    line = np.geomspace(walk.sigmas[0], lowest, count + 1)
    for order, (s, s_next) in zip(orders, itertools.pairwise(map(float, line)), strict=True):
        s_down = max(ancestral_split(s, s_next, eta)[0], lowest)
        fresh = walk.options["s_noise"] * math.sqrt(max(s_next**2 - s_down**2, 0.0))
        h = math.log(s / s_down)
        x, x0, d = walk.predict(s)
        for stage in range(1, order):
            share = stage / order
            s_mid = s * (s_down / s) ** share
            # the start of the step and its first slope, in registers from the second call on
            start, first = (x, d) if stage == 1 else (STATE[1], STATE[2])
            ahead = start + (s_mid - s) * first
            if stage == 2:
                ahead = ahead - s_mid * 2 * (np.expm1(share * h) / (share * h) - 1) * (d - first)
            yield Call(ahead, x0, kept=(start, first), sigma=s if stage == 1 else s * (s_down / s) ** (1 / order))
            _, x0, d = walk.predict(s_mid)
        start, first = (x, d) if order == 1 else (STATE[1], STATE[2])
        end = start + (s_down - s) * first
        if order == 2:
            end = end + (s_down - s) * (d - first)
        elif order == 3:
            end = end - s_down * 1.5 * (np.expm1(h) / h - 1) * (d - first)
        yield Call(end + fresh * NOISE, x0, draws=fresh > 0, sigma=s * (s_down / s) ** ((order - 1) / order))
