"""CFG++ (arXiv 2406.08070) by its definition: clean latents are guided, and unguided noise is added back."""

import math
from typing import Any

import numpy as np
import pytest

from latentrt.runtime.scheduler import Plan, resolve
from latentrt.runtime.scheduler.config import checked_options
from latentrt.runtime.scheduler.solving import solved
from latentrt.runtime.scheduler.spacings import Steps

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SHAPE = (4, 3)


def outputs(x: np.ndarray, t: float) -> tuple[np.ndarray, np.ndarray]:
    """The unguided and the guided direction of a nonlinear model."""
    return np.tanh(x + t / 900), np.sin(x - t / 700)


@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("scale", [0.3, 0.6, 1.0, 1.7])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", ["euler_cfg_pp", "euler_a_cfg_pp", "ddim_cfg_pp", "euler_cfg_pp_karras"])
def test_calls_are_those_of_the_definition(name: str, kind: str, scale: float, eta: float) -> None:
    config = resolve(name, {"_class_name": "PNDMScheduler", **BETAS, "prediction_type": kind})
    options: dict[str, Any] = checked_options(config) | {"eta": eta if "karras" not in name else 0.0}
    options |= {"strength": None, "denoising_start": None, "denoising_end": None}
    result = solved(options, Steps(11))
    schedule, rng = result.schedule, np.random.default_rng(5)
    scales = np.append(schedule.input_scales, 1.0)
    state = np.zeros((7, *SHAPE))
    state[0] = rng.standard_normal(SHAPE) * schedule.initial * scales[0]
    for k, (table, call) in enumerate(zip(result.table, result.calls, strict=True)):
        (a, s), (a_next, s_next) = schedule.levels[k], schedule.targets[k]
        x, fresh = state[0] / scales[k], rng.standard_normal(SHAPE)
        negative, positive = outputs(state[0], schedule.timesteps[k])
        g = call.guidance[0] + call.guidance[1] * scale
        guided = negative + g * (positive - negative)

        size = math.hypot(a, s)
        clean, noise = [], []
        for output in (negative, positive):
            if kind == "epsilon":
                clean.append((x - s * output) / a)
                noise.append(output)
            else:
                clean.append((a * state[0] - s * output) / size)
                noise.append((a * output + s * state[0]) / size)
        x0 = clean[0] + scale * (clean[1] - clean[0])
        if name.startswith("ddim"):
            up = options["eta"] * s_next / s * math.sqrt(1 - (a / a_next) ** 2)
        else:
            wanted = options["eta"] * s_next * math.sqrt(max(1 - (s_next / s) ** 2, 0)) if "_a_" in name else 0.0
            up = min(s_next, wanted)
        expected = a_next * x0 + math.sqrt(max(s_next**2 - up**2, 0)) * noise[0] + up * fresh
        given = np.concatenate([state, guided[None], fresh[None]])
        state = np.tensordot(table, given, 1)
        error = np.abs(state[0] / scales[k + 1] - expected).max() / np.abs(expected).max()
        assert error < 1e-12, k
    assert result.calls[-1].guidance == (0.0, 1.0)


def test_other_plans_take_the_scale_as_it_is() -> None:
    plan = Plan.from_config(resolve("dpm++_2m", {"_class_name": "PNDMScheduler", **BETAS}), 4)
    assert plan.guidance.tolist() == [[0, 1]] * 4
    arrays = plan.to_arrays()
    del arrays["guidance"]
    assert Plan.from_arrays(arrays).guidance.tolist() == [[0, 1]] * 4
