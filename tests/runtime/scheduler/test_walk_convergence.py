"""Convergence of the samplers that lay out their own calls, in float64 on Gaussian data with a closed-form solution."""

import itertools
import math
from typing import Any

import numpy as np
import pytest

from latentrt.runtime.scheduler import resolve
from latentrt.runtime.scheduler.config import checked_options
from latentrt.runtime.scheduler.samplers import MODEL, NOISE, REGISTERS, SAMPLERS, STATE, Call, Walk

STD = 0.6  # of the data
CHECKPOINT = {"_class_name": "PNDMScheduler", "prediction_type": "epsilon"}
TABLE = np.geomspace(0.1, 10, 1000)


def calls_of(name: str, sigmas: np.ndarray, **options: Any) -> tuple[list[Call], np.ndarray]:
    """The calls, and the sigmas between which each steps."""
    config = resolve(name, CHECKPOINT)
    sampler = SAMPLERS[config["_class_name"]]
    assert sampler.walks
    given = checked_options(config) | {"eta": 0.0} | options
    calls = list(sampler.solve(Walk(sigmas, TABLE, given)))
    return calls, np.array([call.sigma for call in calls] + [float(sigmas[-1])])


def matrices(calls: list[Call], levels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """With the ideal model: what each call makes of the registers, and of a draw."""
    table = np.zeros((len(calls), REGISTERS, REGISTERS + 2))
    scales = np.append(1 / np.hypot(1, levels[1:-1]), 1.0)
    for rows, call, s, scale in zip(table, calls, levels[:-1], scales, strict=True):
        rows[0] = call.sample * scale
        for register, kept in enumerate(call.kept, start=1):
            rows[register] = kept
        gain = math.hypot(1, s) * s / (STD**2 + s**2)  # noise predicted, per unit of the scaled input
        rows[:, 0] += rows[:, MODEL.argmax()] * gain
    return table[:, :, :REGISTERS], table[:, :, NOISE.argmax()]


def ode_error(name: str, steps: int, spacing: Any, **options: Any) -> float:
    sigmas = spacing(10.0, 0.1, steps + 1)
    calls, levels = calls_of(name, sigmas, **options)
    state = STATE[0][:REGISTERS] / math.hypot(1, sigmas[0])
    for matrix in matrices(calls, levels)[0]:
        state = matrix @ state
    return abs(state[0] / (math.hypot(STD, 0.1) / math.hypot(STD, 10)) - 1)


@pytest.mark.parametrize(
    ("name", "order", "spacing", "options"),
    [
        ("dpm++_2s_a", 2, np.geomspace, {}),
        ("dpm++_sde", 2, np.geomspace, {}),
        ("dpm++_3m_sde", 2, np.geomspace, {}),  # the first two steps are of lower order
        ("seeds_2", 2, np.geomspace, {}),
        ("seeds_2", 2, np.geomspace, {"stage": 0.7, "solver_type": "phi_2"}),
        ("seeds_3", 3, np.geomspace, {}),
        ("exp_heun_2_x0", 2, np.geomspace, {}),
        ("res_multistep", 2, np.geomspace, {}),
        ("sa_solver_pece", 2, np.geomspace, {}),
        ("ipndm", 2, np.linspace, {}),
        ("ipndm_v", 2, np.linspace, {}),
        ("heunpp2", 1, np.geomspace, {}),  # its weights are those of Heun's rule only in the middle
        ("gradient_estimation", 1, np.geomspace, {}),
        ("dpm_fast", 2, np.geomspace, {}),  # its last steps are of lower order
    ],
)
def test_order_of_convergence(name: str, order: int, spacing: Any, options: dict[str, Any]) -> None:
    errors = [ode_error(name, steps, spacing, **options) for steps in (241, 481, 961)]
    found = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert all(value > order - 0.3 for value in found), (errors, found)


@pytest.mark.parametrize(
    "name",
    ["dpm++_2s_a", "dpm++_sde", "dpm++_3m_sde", "er_sde", "seeds_2", "seeds_3", "exp_heun_2_x0_sde", "res_multistep_a",
     "sa_solver_pece", "restart", "dpm_fast"],
)  # fmt: skip
@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_noise_keeps_the_distribution(name: str, eta: float) -> None:
    """The variance of the final samples, draws that are kept for later included, converges to that of the data."""
    errors = []
    for steps in (100, 400):
        sigmas = np.geomspace(10.0, 0.1, steps + 1)
        if name == "restart":  # its last step goes to 0 at once, which loses the noise that is left
            sigmas = np.append(np.geomspace(10.0, 0.01, steps + 1), 0.0)
        calls, levels = calls_of(name, sigmas, eta=eta)
        covariance = np.zeros((REGISTERS, REGISTERS))
        covariance[0, 0] = (STD**2 + 100) / 101
        for matrix, fresh in zip(*matrices(calls, levels), strict=True):
            covariance = matrix @ covariance @ matrix.T + np.outer(fresh, fresh)
        end = STD**2 + sigmas[-1] ** 2
        errors.append(abs(covariance[0, 0] / end - 1))
    assert errors[1] < 0.02, errors
    assert errors[1] < errors[0] or errors[0] < 1e-3, errors


@pytest.mark.parametrize("name", [n for n, row in SAMPLERS.items() if row.walks and n != "DPMFastSampler"])
def test_a_step_from_pure_noise_does_not_spoil_the_rest(name: str) -> None:
    """With zero terminal SNR the first sigma is 4096, and the next one 12. dpm_fast has steps of its own."""
    sigmas = np.append(4096.0, np.geomspace(12.0, 0.1, 16))
    calls, levels = calls_of(name, sigmas, variable_steps=False)
    state = STATE[0][:REGISTERS] / math.hypot(1, sigmas[0])
    covariance = np.zeros((REGISTERS, REGISTERS))
    for matrix, fresh in zip(*matrices(calls, levels), strict=True):
        state = matrix @ state
        covariance = matrix @ covariance @ matrix.T + np.outer(fresh, fresh)
    # the first sample is the initial noise, to 4096
    spread = math.sqrt((4096 * math.hypot(1, 1 / 4096) * state[0]) ** 2 + covariance[0, 0])
    assert spread == pytest.approx(math.hypot(STD, 0.1), rel=0.1)
