"""Convergence orders of the samplers in float64, on data whose diffusion ODE has a closed-form solution.

Uses a fixed range of sigmas that ends above 0, independent of training schedules.
"""

import itertools
import math
from typing import Any

import numpy as np
import pytest

from latentrt.runtime.scheduler.samplers import REGISTERS, SAMPLERS, STATE
from latentrt.runtime.scheduler.schedules import Schedule
from latentrt.runtime.scheduler.solving import coefficients

DATA_STD = 0.6
HIGHEST, LOWEST = 10.0, 0.1
OPTIONS = {
    "eta": 0.0,
    "s_noise": 1.0,
    "solver_order": 2,
    "algorithm_type": "dpmsolver++",
    "solver_type": "midpoint",
    "lower_order_final": False,
    "euler_at_final": False,
    "final_sigmas_type": "sigma_min",
    "predict_x0": True,
    "disable_corrector": (),
    "skip_prk_steps": True,
    "variance_type": "fixed_small",
}
PRESERVING = ("DDIM", "DDPM", "PNDM", "DPMSolver", "DEIS", "UniPC")
NEVER_CORRECTED = tuple(range(10_000))
Case = tuple[str, dict[str, Any]]


def schedule_for(class_name: str, steps: int, *, even: bool = False) -> Schedule:
    """Sigmas equally spaced in log-SNR (or in sigma), with the calls per step of the class."""
    spacing = np.linspace if even else np.geomspace
    ends = spacing(HIGHEST, LOWEST, steps + 1)
    begins = ends[:-1]
    if class_name.startswith("Heun"):
        begins = np.column_stack([ends[:-1], ends[1:]]).ravel()
    elif class_name.startswith("KDPM2"):
        towards = ends[1:] ** 2 / ends[:-1] if "Ancestral" in class_name else ends[1:]
        begins = np.column_stack([ends[:-1], np.sqrt(ends[:-1] * towards)]).ravel()
    sigmas = np.append(begins, ends[-1])
    alphas = 1 / np.hypot(1, sigmas) if class_name.startswith(PRESERVING) else np.ones_like(sigmas)
    levels = np.stack([alphas, alphas * sigmas], 1)
    before = np.vstack([levels[:1], levels[:-2]])
    return Schedule(np.arange(1.0, len(begins) + 1), levels[:-1], levels[1:], anchors=before)


def ideal(alpha: float, sigma: float) -> dict[str, float]:
    """The gain of the ideal model for data from N(0, DATA_STD**2): output = gain * scaled input.

    The denoiser is the posterior mean, `alpha s**2 / (alpha**2 s**2 + sigma**2) * x`.
    """
    size = math.hypot(alpha, sigma)
    alpha, sigma = alpha / size, sigma / size
    clean = alpha * DATA_STD**2 / (alpha**2 * DATA_STD**2 + sigma**2)
    noise = (1 - alpha * clean) / sigma
    return {"epsilon": noise, "sample": clean, "v_prediction": alpha * noise - sigma * clean}


def transitions(class_name: str, kind: str, schedule: Schedule, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    """With the ideal model substituted: (M, R, R) matrices of the state and (M, R) weights of the noise."""
    calls = list(SAMPLERS[class_name].solve(schedule, {"prediction_type": kind, **OPTIONS, **options}, 0))
    table = coefficients(calls, np.append(schedule.input_scales[1:], 1.0))
    gains = np.array([ideal(*level)[kind] for level in schedule.levels])
    state = table[:, :, :REGISTERS].copy()
    state[:, :, 0] += table[:, :, REGISTERS] * gains[:, None]
    return state, table[:, :, -1]


def spread(level: np.ndarray) -> float:
    """Standard deviation of the noised data; exact ODE solutions are proportional to it."""
    return math.hypot(level[0] * DATA_STD, level[1])


def ode_error(class_name: str, kind: str, steps: int, *, even: bool = False, **options: Any) -> float:
    """Relative error of the final sample."""
    schedule = schedule_for(class_name, steps, even=even)
    matrices, _ = transitions(class_name, kind, schedule, **options)
    state = STATE[0][:REGISTERS].copy()
    for matrix in matrices:
        state = matrix @ state
    begin, end = schedule.levels[0], schedule.targets[-1]
    return abs(state[0] / (math.hypot(*begin) * spread(end) / spread(begin)) - 1)


def local_error(class_name: str, steps: int, *, even: bool = False, **options: Any) -> float:
    """Error of one step from exact history, for multistep methods whose first steps limit the global order."""
    schedule = schedule_for(class_name, steps, even=even)
    matrices, _ = transitions(class_name, "epsilon", schedule, **options)
    i = steps // 4
    levels = schedule.levels
    data = class_name.startswith("DPMSolver")
    scales = [spread(level) / math.hypot(*level) for level in levels[: i + 1]]  # of the model's input
    past = [scales[j] * ideal(*levels[j])["sample" if data else "epsilon"] for j in range(i + 1)]
    state = np.zeros(REGISTERS)
    state[:4] = scales[i], past[i - 1], past[i - 2], past[i - 3]
    return abs(float((matrices[i] @ state)[0]) - spread(levels[i + 1]) / math.hypot(*levels[i + 1]))


def orders(errors: list[float]) -> list[float]:
    return [math.log2(a / b) for a, b in itertools.pairwise(errors)]


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize(
    ("class_name", "options", "order"),
    [
        ("EulerDiscreteScheduler", {}, 1),
        ("HeunDiscreteScheduler", {}, 2),
        ("KDPM2DiscreteScheduler", {}, 2),
        ("DDIMScheduler", {}, 1),
        ("DPMSolverMultistepScheduler", {"solver_order": 1}, 1),
        ("DPMSolverMultistepScheduler", {}, 2),
        ("DPMSolverMultistepScheduler", {"solver_type": "heun"}, 2),
        ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver"}, 2),
        ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver", "solver_type": "heun"}, 2),
        ("DPMSolverSinglestepScheduler", {"solver_order": 1}, 1),
        ("DPMSolverSinglestepScheduler", {}, 2),
        ("DPMSolverSinglestepScheduler", {"solver_type": "heun"}, 2),
        ("DPMSolverSinglestepScheduler", {"solver_order": 3}, 3),
        ("DPMSolverSinglestepScheduler", {"solver_order": 3, "algorithm_type": "dpmsolver"}, 3),
        ("DPMSolverSinglestepScheduler", {"solver_order": 3, "solver_type": "heun"}, 3),
        ("DEISMultistepScheduler", {"solver_order": 1}, 1),
        ("DEISMultistepScheduler", {}, 2),
        ("UniPCMultistepScheduler", {"solver_type": "bh2", "disable_corrector": NEVER_CORRECTED}, 2),
        # The corrector raises the order by one.
        ("UniPCMultistepScheduler", {"solver_type": "bh2", "solver_order": 1}, 2),
        ("UniPCMultistepScheduler", {"solver_type": "bh2"}, 3),
        ("UniPCMultistepScheduler", {"solver_type": "bh1", "predict_x0": False}, 3),
        ("UniPCMultistepScheduler", {"solver_type": "bh2", "solver_order": 3}, 4),
    ],
)
def test_order_of_convergence(class_name: str, options: dict[str, Any], order: int, kind: str) -> None:
    errors = [ode_error(class_name, kind, steps, **options) for steps in (90, 180, 360)]
    assert all(abs(value - order) < 0.15 for value in orders(errors)), (errors, orders(errors))


@pytest.mark.parametrize(
    ("class_name", "even", "options", "order"),
    [
        ("LMSDiscreteScheduler", False, {}, 4),
        ("DEISMultistepScheduler", False, {"solver_order": 3}, 3),
        # Its weights assume equal steps in sigma.
        ("PNDMScheduler", True, {}, 4),
        # The authors' code and diffusers halve the second derivative, so the order is only 2.
        ("DPMSolverMultistepScheduler", False, {"solver_order": 3}, 2),
    ],
)
def test_order_of_one_step_from_exact_history(class_name: str, even: bool, options: dict[str, Any], order: int) -> None:
    errors = [local_error(class_name, steps, even=even, **options) for steps in (48, 96, 192)]
    assert all(abs(value - (order + 1)) < 0.3 for value in orders(errors)), (errors, orders(errors))


def test_third_order_dpm_solver_still_has_the_smaller_error() -> None:
    for steps in (40, 80, 160):
        second, third = (local_error("DPMSolverMultistepScheduler", steps, solver_order=order) for order in (2, 3))
        assert third < 0.75 * second


def test_pndm_is_of_first_order_where_the_model_predicts_the_velocity() -> None:
    """As in diffusers, velocities at different noise levels are combined as if they were at the same one."""
    errors = [ode_error("PNDMScheduler", "v_prediction", steps, even=True) for steps in (400, 800, 1600)]
    assert all(abs(value - 1) < 0.2 for value in orders(errors)), (errors, orders(errors))
    assert ode_error("PNDMScheduler", "epsilon", 400, even=True) < 0.01 * errors[0]


@pytest.mark.parametrize(
    ("class_name", "options"),
    [
        ("EulerAncestralDiscreteScheduler", {"eta": 1.0}),
        ("EulerAncestralDiscreteScheduler", {"eta": 0.5}),
        ("KDPM2AncestralDiscreteScheduler", {"eta": 1.0}),
        ("DDIMScheduler", {"eta": 1.0}),
        ("DDPMScheduler", {}),
        ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
        ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver", "solver_type": "heun"}),
        ("DPMSolverSinglestepScheduler", {"algorithm_type": "sde-dpmsolver++", "solver_order": 1}),
    ],
)
def test_stochastic_samplers_keep_the_distribution(class_name: str, options: dict[str, Any]) -> None:
    """The variance of the final samples converges to that of the noised data."""
    errors = []
    for steps in (100, 200, 400):
        schedule = schedule_for(class_name, steps)
        matrices, noise = transitions(class_name, "epsilon", schedule, **options)
        begin, end = schedule.levels[0], schedule.targets[-1]
        covariance = np.zeros((REGISTERS, REGISTERS))
        covariance[0, 0] = spread(begin) ** 2 / (begin**2).sum()
        for matrix, fresh in zip(matrices, noise, strict=True):
            covariance = matrix @ covariance @ matrix.T + np.outer(fresh, fresh)
        errors.append(abs(covariance[0, 0] / spread(end) ** 2 - 1))
    assert errors[-1] < 0.02, errors
    assert all(a / b > 1.7 for a, b in itertools.pairwise(errors)), errors
