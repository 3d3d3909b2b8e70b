"""Shared by all samplers: basis vectors for the state, the result of a model call, and the two predictions.

Because every sampler here is linear, it computes with basis vectors instead of images: `STATE[k]` stands for register
k, `MODEL` for the model's output and `NOISE` for a fresh draw. A sum of them *is* a row of the plan's coefficients.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from latentrt.runtime.scheduler.schedules import Options, Schedule
from latentrt.runtime.scheduler.sigmas import Float64

REGISTERS = 7  # the sample, at most 5 past quantities, the predicted clean latents
BASIS: Float64 = np.eye(REGISTERS + 2)
BASIS.flags.writeable = False
STATE, MODEL, NOISE = BASIS[:REGISTERS], BASIS[REGISTERS], BASIS[REGISTERS + 1]


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """The result of one model call: linear forms of shape (REGISTERS + 2,) over the state, model output and noise.

    Attributes:
        sample: the next sample, without the model's input scale.
        clean: the predicted clean latents.
        kept: registers 1, 2, ...: past quantities for later calls.
        draws: whether diffusers draws noise here, even if its weight is 0.
        guidance: (p, q), the guidance scale of this call is `p + q * scale`.
        sigma: the noise level that the model was called at, from samplers that lay out their own calls.
    """

    sample: Float64
    clean: Float64
    kept: tuple[Float64, ...] = ()
    draws: bool = False
    guidance: tuple[float, float] = (0.0, 1.0)
    sigma: float = 0.0


Calls = Iterator[Call]


def predict(schedule: Schedule, options: Options, i: int) -> tuple[Float64, Float64, Float64]:
    """Sample, predicted clean latents and predicted noise at call i, as linear forms."""
    alpha, sigma = schedule.levels[i]
    return predict_at(alpha, sigma, options)


def predict_at(alpha: float, sigma: float, options: Options) -> tuple[Float64, Float64, Float64]:
    """Sample, predicted clean latents and predicted noise of a call at a noise level, as linear forms.

    The v-prediction is that of Salimans and Ho (2022), arXiv:2202.00512, for a variance-preserving model input. With
    `sigma_data`, the model is preconditioned as in Karras et al. (2022), table 1; it then predicts F, or -F for "v".
    """
    kind = options["prediction_type"]
    if (data := options.get("sigma_data")) is not None:
        size = math.hypot(data, sigma)
        x = STATE[0] * size
        clean = (data / size) ** 2 * x + (-1 if kind == "v_prediction" else 1) * sigma * data / size * MODEL
        return x, clean, (x - clean) / sigma
    size = math.hypot(alpha, sigma)
    x = STATE[0] * size
    if kind == "epsilon":
        return x, (x - sigma * MODEL) / alpha, MODEL
    if kind == "sample":
        return x, MODEL, (x - alpha * MODEL) / sigma
    clean = (alpha * STATE[0] - sigma * MODEL) / size
    noise = (alpha * MODEL + sigma * STATE[0]) / size
    return x, clean, noise


@dataclass(frozen=True, slots=True, eq=False)
class Walk:
    """What a sampler that lays out its own calls is given: a line of sigmas, variance exploding (alpha is 1).

    Attributes:
        sigmas: (n + 1,) of n steps, falling; the last is where the steps end, usually 0.
        table: (T,) sigmas of the training timesteps, rising.
        options: as for the other samplers, `eta` included.
    """

    sigmas: Float64
    table: Float64
    options: Options

    def steps(self) -> Iterator[tuple[float, float]]:
        """Sigmas before and after each step."""
        return itertools.pairwise(map(float, self.sigmas))

    def predict(self, sigma: float) -> tuple[Float64, Float64, Float64]:
        """See `predict_at`; the predicted noise is the slope dx/dsigma."""
        return predict_at(1.0, sigma, self.options)


def half_log_snr(levels: Float64) -> Float64:
    """`log(alpha / sigma)` of noise levels (n, 2), the "time" of DPM-Solver; infinite at sigma 0. Shape (n,)."""
    return np.asarray(np.log(levels[:, 0] / levels[:, 1]), np.float64)


def psi(z: float, terms: int) -> Float64:
    """Weights of Taylor terms in exponential integrators: `psi_k = z phi_(k+1)(z)`, k = 0, 1, ...

    `psi_0 = exp(z) - 1` and `psi_(k+1) = psi_k / z - 1 / (k+1)!` (Hochbruck and Ostermann, 2010). All are 0 at z = 0.
    Shape (terms,).
    """
    values = np.zeros(terms)
    if z != 0:
        values[0] = np.expm1(z)
        for k in range(1, terms):
            values[k] = values[k - 1] / z - 1 / math.factorial(k)
    return values
