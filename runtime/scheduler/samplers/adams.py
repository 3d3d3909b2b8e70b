"""Exponential Adams methods on the predicted clean latents: RES multistep and the stochastic Adams solver."""

import math
from collections.abc import Sequence

import numpy as np

from latentrt.runtime.scheduler.schedules import Options, Schedule
from latentrt.runtime.scheduler.sigmas import Float64

from .basis import NOISE, STATE, Call, Calls, Walk, half_log_snr, predict, psi
from .multistep import exact_weights
from .onestep import ancestral_split


def res_multistep(walk: Walk) -> Calls:
    """Zhang et al. (2023), arXiv:2308.02157: the refined exponential solver of order 2, multistep; ComfyUI's.

    With eta a step ends at `s_down`, and fresh noise follows. Register 1 holds the previous prediction.
    """
    ends, before = walk.sigmas, math.nan  # where the last step ended without its noise
    for i, (s, s_next) in enumerate(walk.steps()):
        x, x0, _ = walk.predict(s)
        s_down, s_up = ancestral_split(s, s_next, walk.options["eta"])
        if s_down == 0 or i == 0:
            end = s_down / s * x + (1 - s_down / s) * x0
        else:
            h = math.log(s / s_down)
            one, two, _ = psi(-h, 3)
            past = math.log(before / ends[i - 1]) / h  # the node of the previous prediction
            end = s_down / s * x - (one - two / past) * x0 - two / past * STATE[1]
        fresh = s_up * walk.options["s_noise"]
        yield Call(end + fresh * NOISE, x0, kept=(x0,), draws=s_up > 0, sigma=s)
        before = s_down


def sa_solver(schedule: Schedule, options: Options, begin: int) -> Calls:
    """Xue et al. (2023), arXiv:2309.05019: SA-Predictor, and with the next call's output SA-Corrector (PEC).

    Noise is added between timesteps 200 and 800. Registers 1 to 3 hold the previous predictions, 4 the corrected
    sample at the start of the last step, 5 its draw. As in the authors' code, order 2 is that of UniPC.
    """
    ends = np.concatenate([schedule.levels, schedule.targets[-1:]])
    calls, data = len(schedule.timesteps), options["algorithm_type"] == "data_prediction"
    times = schedule.timesteps
    correct = 0  # order of the next corrector
    for i in range(begin, calls):
        x, x0, eps = predict(schedule, options, i)
        m = x0 if data else eps
        outputs = (m, STATE[1], STATE[2], STATE[3])
        if i > begin:
            x = _adams(ends, i - 1, STATE[4], outputs[:correct], STATE[5], _tau(times[i - 1]), options, corrects=True)
        short = options["lower_order_final"]
        known = min(i - begin, max(options["predictor_order"], options["corrector_order"] - 1))
        order = min(options["predictor_order"], calls - i if short else 4, known + 1)
        correct = min(options["corrector_order"], calls - i + 1 if short else 4, known + 2)
        x_next = _adams(ends, i, x, outputs[:order], NOISE, _tau(times[i]), options, corrects=False)
        yield Call(x_next, x0, kept=(m, STATE[1], STATE[2], x, NOISE), draws=True)


def _tau(timestep: float) -> float:
    return 1.0 if 200 <= timestep <= 800 else 0.0


def _adams(
    ends: Float64,
    i: int,
    x: Float64,
    outputs: Sequence[Float64],
    noise: Float64,
    tau: float,
    options: Options,
    *,
    corrects: bool,
) -> Float64:
    """Step from level i to i + 1 with predictions, newest first: from level i on, or with `corrects` from i + 1 on."""
    data = options["algorithm_type"] == "data_prediction"
    lam = half_log_snr(ends)
    (a, s), (a_next, s_next) = ends[i], ends[i + 1]
    h = lam[i + 1] - lam[i]
    weights = adams_weights(lam[i + corrects - np.arange(len(outputs))], lam[i], h, tau, data=data)
    if data and len(outputs) == 2 and h != 0:
        square = 1 + tau**2
        bend = square * h**2 / 2 + h * psi(-square * h, 2)[1]
        bend /= h if corrects else lam[i] - lam[i - 1]
        weights += np.array([bend, -bend])
    change = sum((w * output for w, output in zip(weights, outputs, strict=True)), np.zeros_like(x))
    if data:
        carry, fresh = s_next / s * math.exp(-(tau**2) * h), s_next * math.sqrt(-math.expm1(-2 * tau**2 * h))
        return np.asarray(carry * x + a_next * change + fresh * noise)
    return np.asarray(a_next / a * x - s_next * change + tau * s_next * math.sqrt(math.expm1(2 * h)) * noise)


def adams_weights(nodes: Float64, start: float, h: float, tau: float, *, data: bool = True) -> Float64:
    """Integrals of the Lagrange polynomials of `nodes` in half log-SNR from `start` over h, as in equations 15 and 18.

    With the kernel `(1 + tau**2) exp((1 + tau**2) (lambda - start - h))` for predicted clean latents, and
    `(1 + tau**2) exp(start + h - lambda)` for predicted noise. Shape (nodes,).
    """
    square = 1 + tau**2
    if h == 0:
        return np.zeros(len(nodes))
    moments = -psi(-square * h, len(nodes)) if data else square * psi(h, len(nodes))
    return exact_weights((nodes - start) / h, moments * [math.factorial(k) for k in range(len(nodes))])


def sa_solver_pece(walk: Walk) -> Calls:
    """The same solver with a second call for each corrected sample (PECE), by ComfyUI: orders 3 and 4 by default.

    ComfyUI adds noise from 20 % to 80 % of the timesteps, whatever their number.

    Registers 1 to 3 hold the previous predictions, 4 the corrected sample at the start of the last step, 5 its noise.
    """
    ends, options = walk.sigmas, walk.options
    lam = -np.log(np.where(ends > 0, ends, np.nan))
    steps, to_zero = len(ends) - 1, ends[-1] == 0
    low, high = np.exp(np.interp((0.2, 0.8), np.linspace(0, 1, len(walk.table)), np.log(walk.table)))
    tau, carry, known = 0.0, 1.0, 0
    for i, (s, s_next) in enumerate(walk.steps()):
        x, x0, _ = walk.predict(s)
        known = min(known + 1, 4)
        order = min(options["predictor_order"], known, steps - 1 - i if to_zero else 4)
        correct = min(options["corrector_order"], known, steps - i if to_zero else 4) if i else 0
        outputs = (x0, STATE[1], STATE[2], STATE[3])
        if correct:
            nodes = lam[i - np.arange(correct)]
            weights = adams_weights(nodes, lam[i - 1], lam[i] - lam[i - 1], tau)
            fixed = carry * STATE[4] + STATE[5]
            fixed = sum((w * m for w, m in zip(weights, outputs, strict=False)), fixed)
            yield Call(fixed, x0, kept=(STATE[1], STATE[2], STATE[3]), sigma=s)
            x, x0, _ = walk.predict(s)
            outputs = (x0, STATE[1], STATE[2], STATE[3])
        if s_next == 0:
            yield Call(x0, x0, sigma=s)
            continue
        tau = options["eta"] if low <= s_next <= high else 0.0
        h = lam[i + 1] - lam[i]
        weights = adams_weights(lam[i - np.arange(order)], lam[i], h, tau)
        carry = s_next / s * math.exp(-(tau**2) * h)
        fresh = s_next * math.sqrt(-math.expm1(-2 * tau**2 * h)) * options["s_noise"] * NOISE
        end = sum((w * m for w, m in zip(weights, outputs, strict=False)), carry * x + fresh)
        yield Call(end, x0, kept=(x0, STATE[1], STATE[2], x, fresh), draws=tau > 0, sigma=s)
