"""Samplers that use previous model calls: LMS, PNDM, DPM-Solver, DEIS, UniPC."""

import math

import numpy as np

from latentrt.runtime.errors import SchedulerError
from latentrt.runtime.scheduler.schedules import Options, Schedule
from latentrt.runtime.scheduler.sigmas import Float64

from .basis import MODEL, NOISE, STATE, Call, Calls, half_log_snr, predict, psi


def lms(schedule: Schedule, options: Options, begin: int) -> Calls:
    """Linear multistep (Adams-Bashforth) in sigma up to order 4, as k-diffusion's `sample_lms`.

    Registers 1 to 3 hold the previous slopes.
    """
    nodes, weights = np.polynomial.legendre.leggauss(2)  # exact up to degree 3
    for i in range(begin, len(schedule.timesteps)):
        s, s_next = schedule.levels[i, 1], schedule.targets[i, 1]
        x, x0, d = predict(schedule, options, i)
        past = schedule.levels[i - np.arange(min(4, i - begin + 1)), 1]
        middle, half = (s + s_next) / 2, (s_next - s) / 2
        for k, slope in enumerate((d, *STATE[1 : len(past)])):
            others = np.delete(past, k)
            lagrange = [np.prod((middle + half * node - others) / (past[k] - others)) for node in nodes]
            x = x + half * (weights @ lagrange) * slope
        yield Call(x, x0, kept=(d, STATE[1], STATE[2]))


def pndm(schedule: Schedule, options: Options, begin: int) -> Calls:
    """Liu et al. (2022), arXiv:2202.09778: pseudo Runge-Kutta (equation 13), then pseudo multistep steps (12).

    With `skip_prk_steps`, as in Stable Diffusion, Heun's rule replaces Runge-Kutta at the first step, and the order
    builds up. Registers 1 to 3 hold the model's outputs at the previous steps, 4 the sample at the start of a step of
    several calls, 5 the sum of its slopes. The rules combine raw model outputs, whatever the prediction type.
    """
    warm_up = 0 if options["skip_prk_steps"] else 12
    if warm_up and begin:
        raise SchedulerError(
            "PNDM with skip_prk_steps=false cannot start in the middle of a schedule: "
            'set "skip_prk_steps": true, as Stable Diffusion checkpoints do'
        )
    past = (STATE[1], STATE[2], STATE[3])
    known = 0  # outputs in `past`
    for i in range(begin, len(schedule.timesteps)):
        x, x0, _ = predict(schedule, options, i)
        if i < warm_up:
            stage = i % 4
            start, total = (x, MODEL / 6) if stage == 0 else (STATE[4], STATE[5] + MODEL / (3, 3, 6)[stage - 1])
            outputs = (MODEL, STATE[1], STATE[2]) if stage == 0 else past
            known += stage == 0
            x_next = _transfer(options, schedule.anchors[i], schedule.targets[i], start, total if stage == 3 else MODEL)
            yield Call(x_next, x0, kept=(*outputs, start, total))
        elif not warm_up and i == begin + 1:
            slope = (MODEL + STATE[1]) / 2
            yield Call(_transfer(options, schedule.anchors[i], schedule.levels[i], STATE[4], slope), x0, kept=past)
        else:
            weights = _ADAMS_BASHFORTH[min(known, 3)]
            slope = sum((w * e for w, e in zip(weights, (MODEL, *past), strict=False)), np.zeros_like(MODEL))
            known += 1
            x_next = _transfer(options, schedule.levels[i], schedule.targets[i], x, slope)
            yield Call(x_next, x0, kept=(MODEL, STATE[1], STATE[2], x))


_ADAMS_BASHFORTH = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


def _transfer(options: Options, level: Float64, target: Float64, x: Float64, output: Float64) -> Float64:
    """PNDM's equation 11: a DDIM step from one noise level to another with a combined model output."""
    (a, s), (a_next, s_next) = level, target
    eps = a * output + s * x if options["prediction_type"] == "v_prediction" else output
    return np.asarray(a_next * (x - s * eps) / a + s_next * eps)


def dpm_solver(schedule: Schedule, options: Options, begin: int) -> Calls:
    """Lu et al. (2022): DPM-Solver, arXiv:2206.00927, and DPM-Solver++, arXiv:2211.01095; multistep, orders 1 to 3.

    DPM-Solver++ (its Algorithm 2) expands the predicted clean latents in half log-SNR, DPM-Solver the predicted
    noise: `x_next = carry x - gain (psi_0 D_0 + psi_1 D_1 + psi_2 D_2)`. The `sde-` types add noise,
    `sde-dpmsolver++` as much as `eta` says, as in k-diffusion. Registers 1 and 2 hold the two previous predictions.
    Order 3 follows the authors' code, where D_2 is half of h**2 times the second
    derivative, so it converges only at order 2.
    """
    data, sde = options["algorithm_type"].endswith("++"), options["algorithm_type"].startswith("sde-")
    eta, s_noise = (options.get("eta", 1.0), options.get("s_noise", 1.0)) if sde and data else (float(sde), 1.0)
    ends = np.concatenate([schedule.levels, schedule.targets[-1:]])
    lam = half_log_snr(ends)
    ends_low = options["euler_at_final"] or options["final_sigmas_type"] == "zero"
    for i in range(begin, len(schedule.timesteps)):
        (a, s), (a_next, s_next) = ends[i], ends[i + 1]
        x, x0, eps = predict(schedule, options, i)
        h = lam[i + 1] - lam[i]
        if data:
            m, z, gain, carry = x0, -h * (1 + eta), a_next, s_next / s * np.exp(-h * eta if eta else 0.0)
        else:
            m, z, gain, carry = eps, h, s_next * (1 + sde), a_next / a
        order = _order(options, len(schedule.timesteps), i, begin, ends_low=ends_low)
        weights = psi(z, 3)
        if order == 2 and options["solver_type"] == "midpoint":
            weights[1] = weights[0] / 2
        x_next = carry * x
        for weight, difference in zip(weights, _differences(lam, i, m, order), strict=False):
            x_next = x_next - gain * weight * difference
        fresh = s_noise * s_next * np.sqrt(abs(np.expm1(-2 * h * eta if data else 2 * h))) if eta else 0.0
        yield Call(x_next + fresh * NOISE, x0, kept=(m, STATE[1]), draws=eta > 0)


def _order(options: Options, calls: int, i: int, begin: int, *, ends_low: bool = False) -> int:
    """Order of step i: it rises from `begin` on, and drops at the end of a short run or with `ends_low`."""
    few = options["lower_order_final"] and calls < 15
    order: int = min(options["solver_order"], i - begin + 1)
    if i == calls - 1 and (few or ends_low):
        return 1
    return min(order, 2) if few and i == calls - 2 else order


def _differences(lam: Float64, i: int, m: Float64, order: int) -> tuple[Float64, ...]:
    """Divided differences D_0, D_1, ... in half log-SNR, of the predictions at steps i, i - 1, i - 2, up to the order.

    As in the papers, they are scaled by the step `h = lam[i + 1] - lam[i]`.
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


def deis(schedule: Schedule, options: Options, begin: int) -> Calls:
    """Zhang and Chen (2022), arXiv:2204.13902: log-rho Adams-Bashforth on the predicted noise, orders 1 to 3.

    A polynomial in log rho = -lambda is one in half log-SNR, so the weights are those of an exponential integrator.
    Registers 1 and 2 hold the two previous predictions.
    """
    ends = np.concatenate([schedule.levels, schedule.targets[-1:]])
    lam = half_log_snr(ends)
    for i in range(begin, len(schedule.timesteps)):
        x, x0, eps = predict(schedule, options, i)
        order = _order(options, len(schedule.timesteps), i, begin)
        h = lam[i + 1] - lam[i]
        change = psi(h, 1)[0] * eps
        if order > 1 and h != 0:
            r = (lam[i - np.arange(1, order)] - lam[i]) / h
            moments = psi(h, order)[1:] * [math.factorial(k) for k in range(1, order)]
            for weight, node, past in zip(exact_weights(r, moments), r, STATE[1:order], strict=True):
                change = change + weight * (past - eps) / node
        (a, _), (a_next, s_next) = ends[i], ends[i + 1]
        yield Call(a_next / a * x - s_next * change, x0, kept=(eps, STATE[1]))


def exact_weights(r: Float64, moments: Float64) -> Float64:
    """Weights w of slopes `(m_k - m) / r_k` that are exact for polynomials: `sum_k w_k r_k**(j-1) = moments_j`."""
    return np.asarray(np.linalg.solve(np.vander(r, increasing=True).T, moments), np.float64)


def unipc(schedule: Schedule, options: Options, begin: int) -> Calls:
    """Zhao et al. (2023), arXiv:2302.04867: UniP-p predicts, and the next call's output corrects (UniC-p), p = 1 to 3.

    Registers 1 to 3 hold the previous predictions, 4 the corrected sample at the start of the last step. Where the
    paper's weights do not depend on the step (predictor of order 2, corrector of order 1), they are B(h) / 2.
    """
    ends = np.concatenate([schedule.levels, schedule.targets[-1:]])
    calls, data = len(schedule.timesteps), options["predict_x0"]
    order = 0
    for i in range(begin, calls):
        x, x0, eps = predict(schedule, options, i)
        m = x0 if data else eps
        if i > begin and i - 1 not in options["disable_corrector"]:
            x = _unified_step(ends, options, i - 1, STATE[4], (STATE[1], STATE[2], STATE[3])[:order], m)
        wanted = options["solver_order"]
        order = min(wanted, calls - i if options["lower_order_final"] else wanted, i - begin + 1)
        x_next = _unified_step(ends, options, i, x, (m, STATE[1], STATE[2])[:order], None)
        yield Call(x_next, x0, kept=(m, STATE[1], STATE[2], x))


def _unified_step(
    ends: Float64, options: Options, i: int, x: Float64, outputs: tuple[Float64, ...], new: Float64 | None
) -> Float64:
    """Step from level i to i + 1 with the predictions at i, i - 1, ...; with `new`, that at i + 1, the corrector."""
    lam = half_log_snr(ends)
    (a, s), (a_next, s_next) = ends[i], ends[i + 1]
    h = lam[i + 1] - lam[i]
    data, order = options["predict_x0"], len(outputs)
    z = -h if data else h
    r = (lam[i - np.arange(1, order)] - lam[i]) / h
    slopes = [(output - outputs[0]) / node for output, node in zip(outputs[1:], r, strict=True)]
    if new is not None:
        r, slopes = np.append(r, 1.0), [*slopes, new - outputs[0]]
    if len(slopes) == 1:
        weights = np.array([(z if options["solver_type"] == "bh1" else np.expm1(z)) / 2])
    else:
        moments = psi(z, len(slopes) + 1)[1:] * [math.factorial(k) for k in range(1, len(slopes) + 1)]
        weights = exact_weights(r, moments) if slopes else np.empty(0)
    carry, gain = (s_next / s, a_next) if data else (a_next / a, s_next)
    change = psi(z, 1)[0] * outputs[0]
    for weight, slope in zip(weights, slopes, strict=True):
        change = change + weight * slope
    return np.asarray(carry * x - gain * change)
