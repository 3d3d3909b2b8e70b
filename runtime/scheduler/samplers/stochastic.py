"""Exponential integrators with noise that only web UIs have: DPM-Solver++ 2S ancestral, SDE and 3M SDE, SEEDS, ER-SDE.

They expand the predicted clean latents in half log-SNR, which is -log(sigma), and lay out their own calls. A register
that holds noise keeps the draw of a step's first part, which is a part of the draw of the whole step.
"""

import math

import numpy as np

from latentrt.runtime.scheduler.sigmas import Float64

from .basis import NOISE, STATE, Call, Calls, Walk, psi
from .onestep import ancestral_split


def dpmpp_2s_ancestral(walk: Walk) -> Calls:
    """k-diffusion's `sample_dpmpp_2s_ancestral`: the prediction in the middle of a step that ends at `s_down`.

    Register 1 holds the sample at the start of the step.
    """
    for s, s_next in walk.steps():
        x, x0, _ = walk.predict(s)
        s_down, s_up = ancestral_split(s, s_next, walk.options["eta"])
        fresh = s_up * walk.options["s_noise"] * NOISE
        if s_down == 0:
            yield Call(x0 + fresh, x0, draws=s_up > 0, sigma=s)
            continue
        middle = math.sqrt(s * s_down)
        yield Call(middle / s * x + (1 - middle / s) * x0, x0, kept=(x,), sigma=s)
        _, x0, _ = walk.predict(middle)
        end = s_down / s * STATE[1] + (1 - s_down / s) * x0
        yield Call(end + fresh, x0, draws=s_up > 0, sigma=middle)


def dpmpp_sde(walk: Walk) -> Calls:
    """k-diffusion's `sample_dpmpp_sde` with r = 1/2: two ancestral steps from the same start.

    Registers 1 to 3 hold the sample and the prediction at the start, and the first draw. k-diffusion's draws are
    increments of one Brownian motion in sigma, so that of the whole step contains that of its first part.
    """
    eta, s_noise = walk.options["eta"], walk.options["s_noise"]
    for s, s_next in walk.steps():
        x, x0, _ = walk.predict(s)
        if s_next == 0:
            yield Call(x0, x0, sigma=s)
            continue
        middle = math.sqrt(s * s_next)
        s_down, s_up = ancestral_split(s, middle, eta)
        ahead = s_down / s * x + (1 - s_down / s) * x0
        yield Call(ahead + s_up * s_noise * NOISE, x0, kept=(x, x0, NOISE), draws=s_up > 0, sigma=s)
        _, x0, _ = walk.predict(middle)
        s_down, s_up = ancestral_split(s, s_next, eta)
        passed = (s - middle) / (s - s_next)
        noise = math.sqrt(passed) * STATE[3] + math.sqrt(1 - passed) * NOISE
        end = s_down / s * STATE[1] + (1 - s_down / s) * x0
        yield Call(end + s_up * s_noise * noise, x0, draws=s_up > 0, sigma=middle)


def dpmpp_3m_sde(walk: Walk) -> Calls:
    """k-diffusion's `sample_dpmpp_3m_sde`: DPM-Solver++ multistep of order 3 with noise; the last step is Euler's.

    Registers 1 and 2 hold the two previous predictions.
    """
    eta, s_noise = walk.options["eta"], walk.options["s_noise"]
    past: list[float] = []  # step lengths in half log-SNR, newest first
    for s, s_next in walk.steps():
        x, x0, _ = walk.predict(s)
        if s_next == 0:
            yield Call(x0, x0, sigma=s)
            continue
        h = math.log(s / s_next)
        z = -h * (1 + eta)
        one, two, three = psi(z, 3)
        end = math.exp(z) * x - one * x0
        if len(past) == 1:
            end = end - two * (x0 - STATE[1]) * h / past[0]
        elif len(past) == 2:
            near, far = past[0] / h, past[1] / h
            first, second = (x0 - STATE[1]) / near, (STATE[1] - STATE[2]) / far
            curve = (first - second) / (near + far)
            end = end - two * (first + near * curve) - three * curve
        fresh = s_next * math.sqrt(-math.expm1(-2 * h * eta)) * s_noise
        yield Call(end + fresh * NOISE, x0, kept=(x0, STATE[1]), draws=eta > 0, sigma=s)
        past = [h, *past[:1]]


def seeds_2(walk: Walk) -> Calls:
    """Gonzalez et al. (2023), arXiv:2305.14267: SEEDS-2 with the middle at `stage` of the step; ComfyUI's.

    At stage 1 and without noise it is an exponential Heun method. Registers 1 to 3 hold the sample and the prediction
    at the start, and the first draw.
    """
    eta, s_noise, share = walk.options["eta"], walk.options["s_noise"], walk.options["stage"]
    for s, s_next in walk.steps():
        x, x0, _ = walk.predict(s)
        if s_next == 0:
            yield Call(x0, x0, sigma=s)
            continue
        h = math.log(s / s_next)
        middle = s * math.exp(-share * h)
        fresh = math.sqrt(-math.expm1(-2 * share * h * eta))
        ahead = middle / s * math.exp(-share * h * eta) * x - math.expm1(-share * h * (1 + eta)) * x0
        yield Call(ahead + middle * s_noise * fresh * NOISE, x0, kept=(x, x0, NOISE), draws=eta > 0, sigma=s)
        _, x0, _ = walk.predict(middle)
        one, two, _ = psi(-h * (1 + eta), 3)
        second = (one / 2 if walk.options["solver_type"] == "phi_1" else two) / share
        end = s_next / s * math.exp(-h * eta) * STATE[1] - (one - second) * STATE[2] - second * x0
        rest = (1 - share) * h * eta
        noise = math.exp(-rest) * fresh * STATE[3] + math.sqrt(-math.expm1(-2 * rest)) * NOISE
        yield Call(end + s_next * s_noise * noise, x0, draws=eta > 0, sigma=middle)


def seeds_3(walk: Walk) -> Calls:
    """SEEDS-3 of the same paper, at 1/3 and 2/3 of the step; ComfyUI's.

    Registers 1 to 3 hold the sample and the prediction at the start, and the noise so far.
    """
    eta, s_noise = walk.options["eta"], walk.options["s_noise"]
    for s, s_next in walk.steps():
        x, x0, _ = walk.predict(s)
        if s_next == 0:
            yield Call(x0, x0, sigma=s)
            continue
        h = math.log(s / s_next)
        first, second = s * math.exp(-h / 3), s * math.exp(-2 * h / 3)
        third = h * eta / 3  # each third of the step adds as much noise
        decay, fresh = math.exp(-third), math.sqrt(-math.expm1(-2 * third))
        ahead = first / s * decay * x - math.expm1(-h / 3 * (1 + eta)) * x0
        noise = fresh * NOISE
        yield Call(ahead + first * s_noise * noise, x0, kept=(x, x0, noise), draws=eta > 0, sigma=s)
        _, x0, _ = walk.predict(first)
        one, two, _ = psi(-2 * h / 3 * (1 + eta), 3)
        ahead = second / s * decay**2 * STATE[1] - (one - 2 * two) * STATE[2] - 2 * two * x0
        noise = decay * STATE[3] + fresh * NOISE
        kept = (STATE[1], STATE[2], noise)
        yield Call(ahead + second * s_noise * noise, x0, kept=kept, draws=eta > 0, sigma=first)
        _, x0, _ = walk.predict(second)
        one, two, _ = psi(-h * (1 + eta), 3)
        end = s_next / s * decay**3 * STATE[1] - (one - 1.5 * two) * STATE[2] - 1.5 * two * x0
        yield Call(end + s_next * s_noise * noise, x0, draws=eta > 0, sigma=second)


def er_sde(walk: Walk) -> Calls:
    """Cui et al. (2023), arXiv:2309.06169: ER-SDE-Solver-3 with the noise scale `sigma (exp(sigma**0.3) + 10)`.

    The two integrals of orders 2 and 3 are left sums of 200 points, as in the authors' code. Registers 1 and 2 hold
    the previous prediction and its divided difference.
    """
    ends = walk.sigmas
    for i, (s, s_next) in enumerate(walk.steps()):
        x, x0, _ = walk.predict(s)
        if s_next == 0:
            yield Call(x0, x0, sigma=s)
            continue
        scale = float(_noise_scale(s_next))
        ratio = scale / float(_noise_scale(s))
        end = ratio * x + (1 - ratio) * x0
        step = s_next - s
        points = np.asarray(s_next - np.arange(200) * (step / 200), np.float64)
        inverse = 1 / _noise_scale(points)
        change = np.zeros_like(x)
        if i > 0:
            change = (x0 - STATE[1]) / (s - ends[i - 1])
            end = end + (step - scale * inverse.sum() * step / 200) * change
        if i > 1:
            curve = 2 * (change - STATE[2]) / (s - ends[i - 2])
            end = end + (step**2 / 2 - scale * ((points - s) * inverse).sum() * step / 200) * curve
        fresh = walk.options["s_noise"] * math.sqrt(max(s_next**2 - (s * ratio) ** 2, 0.0))
        yield Call(end + fresh * NOISE, x0, kept=(x0, change), draws=fresh > 0, sigma=s)


def _noise_scale(sigma: Float64 | float) -> Float64:
    return np.asarray(sigma * (np.exp(np.power(sigma, 0.3)) + 10), np.float64)
