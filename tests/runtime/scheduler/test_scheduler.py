"""Plans on their own: common properties, errors, arrays, caching."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from latentrt.runtime.errors import SchedulerError
from latentrt.runtime.scheduler import Plan, resolve, scheduler_names
from latentrt.runtime.scheduler.samplers import NOISE, REGISTERS, SAMPLERS

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
EULER = {"_class_name": "EulerDiscreteScheduler", **SD}
DDIM = {"_class_name": "DDIMScheduler", **SD, "clip_sample": False}
DPM = {"_class_name": "DPMSolverMultistepScheduler", **SD}
# PNDM combines outputs of several noise levels, so the prediction type matters; flow matching has its own type.
ONE_KIND = {name for name in scheduler_names() if name in ("pndm", "plms") or name.startswith("flow")}


@pytest.mark.parametrize("name", [n for n in scheduler_names() if n not in SAMPLERS and n not in ONE_KIND])
def test_prediction_types_describe_one_trajectory(name: str) -> None:
    """The same denoiser, expressed as noise, clean latents or velocity, gives the same result."""
    noise = np.random.default_rng(0).standard_normal((4, 8))
    results = []
    for kind in ("epsilon", "sample", "v_prediction"):
        config = resolve(name, {"_class_name": "PNDMScheduler", **SD, "prediction_type": kind})
        plan = Plan.from_config(config, 12)
        levels = dict(zip(plan.timesteps.tolist(), plan.noise_levels.tolist(), strict=False))
        draws = np.random.default_rng(1)

        def told(x: np.ndarray, t: np.float32, kind: str = kind, levels: dict[float, list[float]] = levels) -> Any:
            alpha, sigma = levels[float(t)]
            clean = np.tanh(x / alpha * min(1.0, alpha))
            eps = (x - alpha * clean) / sigma
            return {"epsilon": eps, "sample": clean, "v_prediction": alpha * eps - sigma * clean}[kind]

        results.append(plan.replay(told, noise, draw=lambda draws=draws: draws.standard_normal((4, 8))))
    for other in results[1:]:
        np.testing.assert_allclose(other, results[0], atol=2e-4)


def test_only_row_0_takes_fresh_noise() -> None:
    """Known latents are blended into row 0 alone. Registers may hold a draw, but not a sample with fresh noise."""
    for name in scheduler_names():
        plan = Plan.from_config(resolve(name, DDIM), 8)
        draws = np.zeros(REGISTERS + 2, bool)  # what is made of draws alone
        draws[-1] = True
        for table in plan.coefficients:
            fresh = table[:, -1] != 0
            alone = fresh & ~table[:, ~draws].any(1)
            assert np.array_equal(fresh[1:], alone[1:]), name
            draws[:REGISTERS] = alone
        assert np.isfinite(plan.coefficients).all()
        alpha, sigma = plan.noise_levels[:-1].T
        if name.startswith("EDM"):  # its inputs are scaled for data of deviation 1/2
            alpha = alpha / 2
        np.testing.assert_allclose(alpha + sigma if "low" in name else np.hypot(alpha, sigma), 1, atol=1e-6)


def test_draws_are_those_that_are_used() -> None:
    assert not Plan.from_config(DDIM, 6).draws.any()
    assert Plan.from_config(DDIM, 6, eta=0.5).draws.tolist() == [True] * 5 + [False]
    ancestral = Plan.from_config(resolve("euler_a", DDIM), 6)
    assert ancestral.draws.tolist() == [True] * 5 + [False]
    assert NOISE.tolist() == [0] * (REGISTERS + 1) + [1]
    np.testing.assert_array_equal(ancestral.draws, ancestral.coefficients[:, 0, -1] != 0)


def test_zero_terminal_snr_begins_at_4096() -> None:
    config = EULER | {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    alpha, sigma = Plan.from_config(config, 4).noise_levels[0]
    assert sigma / alpha == pytest.approx(4096, rel=1e-6)
    assert Plan.from_config(
        DDIM | {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction"}, 4
    ).noise_levels[0].tolist() == [0, 1]


def test_plans_are_cached_frozen_and_survive_arrays() -> None:
    plan = Plan.from_config(EULER, 5)
    assert Plan.from_config({**EULER, "_diffusers_version": "0.1"}, 5) is plan
    assert Plan.from_config(EULER, 6) is not plan
    with pytest.raises(ValueError, match="read-only"):
        plan.coefficients[0, 0, 0] = 1
    with pytest.raises(AttributeError):
        plan.timesteps = plan.draws  # type: ignore[misc, assignment]
    again = Plan.from_arrays(plan.to_arrays())
    for name, array in plan.to_arrays().items():
        np.testing.assert_array_equal(getattr(again, name), array)
    assert len(plan) == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"timesteps": np.zeros(4)}, "coefficients of a plan has shape"),
        ({"draws": np.zeros(3, bool)}, "draws of a plan has shape"),
        ({"initial": np.full((REGISTERS, 2), np.nan)}, "initial of a plan contains NaN or infinity"),
        ({"more": np.zeros(1)}, "expected the arrays"),
    ],
)
def test_malformed_plans_are_refused(change: dict[str, Any], message: str) -> None:
    arrays = Plan.from_config(EULER, 5).to_arrays() | change
    with pytest.raises(SchedulerError, match=message):
        Plan.from_arrays(arrays)


def test_replay_asks_for_what_a_plan_needs() -> None:
    noise = np.zeros((2, 2), np.float32)

    def model(x: np.ndarray, t: np.float32) -> np.ndarray:  # noqa: ARG001
        return x

    with pytest.raises(SchedulerError, match="pass clean="):
        Plan.from_config(EULER, 5, strength=0.5).replay(model, noise)
    with pytest.raises(SchedulerError, match="pass draw="):
        Plan.from_config(DDIM, 5, eta=1.0).replay(model, noise)
    assert Plan.from_config(EULER, 5).replay(model, noise).dtype == np.float32
    assert Plan.from_config(EULER, 5).replay(model, noise.astype(np.float64)).dtype == np.float64


REFUSALS: list[tuple[Callable[[], Any], str]] = [
    (lambda: resolve("dpm++2m", DDIM), r"unknown scheduler 'dpm\+\+2m'; did you mean 'dpm\+\+_2m'"),
    (lambda: resolve("zyx", DDIM), r"unknown scheduler 'zyx'; expected one of .*euler_a, .*DDIMScheduler"),
    (lambda: resolve("euler_a_karas", DDIM), r"unknown scheduler 'euler_a_karas'.*'euler_a_karras'"),
    (lambda: resolve("ddim_karras", DDIM), r"'ddim_karras': DDIMScheduler has its own steps.*these do: lms, euler"),
    (lambda: resolve("euler:s_churn", DDIM), r"expected NAME:OPTION=VALUE"),
    (lambda: Plan.from_config(resolve("euler:schurn=1", DDIM), 5), r"'schurn'; did you mean 's_churn'"),
    (lambda: Plan.from_config(resolve("euler:schedule_type=even", DDIM), 5), r"accepts None, 'karras', 'exponential'"),
    (lambda: resolve({"name": "eular"}, DDIM), r"unknown scheduler 'eular'; did you mean 'euler'"),
    (lambda: Plan.from_config({**SD}, 5), r'no "_class_name"'),
    (lambda: Plan.from_config({"_class_name": "EulerScheduler"}, 5), r"mean .*'EulerDiscreteScheduler'"),
    (lambda: Plan.from_config(EULER | {"use_karas_sigmas": True}, 5), r"'use_karas_sigmas'.*'use_karras_sigmas'"),
    (lambda: Plan.from_config(EULER | {"timestep_spacing": "even"}, 5), r"'leading', 'linspace', 'trailing'"),
    (lambda: Plan.from_config(EULER | {"beta_schedule": "sigmoid"}, 5), r"'scaled_linear', 'squaredcos_cap_v2'"),
    (lambda: Plan.from_config(EULER | {"prediction_type": "flow_prediction"}, 5), r"'epsilon', 'v_prediction'"),
    (lambda: Plan.from_config(EULER | {"steps_offset": 0.5}, 5), r"steps_offset=0.5.*expected an integer from 0"),
    (lambda: Plan.from_config(EULER | {"beta_start": "0.1"}, 5), r"beta_start='0.1'.*expected a number"),
    (lambda: Plan.from_config(EULER | {"use_karras_sigmas": "yes"}, 5), r"use_karras_sigmas='yes'.*true or false"),
    (lambda: Plan.from_config(EULER | {"trained_betas": [0.1, 0.2]}, 5), r"1000 and 2 trained_betas"),
    (
        lambda: Plan.from_config(EULER | {"use_karras_sigmas": True, "use_exponential_sigmas": True}, 5),
        r"use_karras_sigmas and use_exponential_sigmas are both set",
    ),
    (lambda: Plan.from_config(DDIM | {"clip_sample": True}, 5), r'not linear.*set "clip_sample": false'),
    (
        lambda: Plan.from_config({k: v for k, v in DDIM.items() if k != "clip_sample"}, 5),
        r'clip_sample=True \(the default of DDIMScheduler.*set "clip_sample": false',
    ),
    (lambda: Plan.from_config(resolve("DDIMScheduler", EULER), 5), r'set "clip_sample": false'),
    (lambda: Plan.from_config(DPM | {"thresholding": True}, 5), r'not linear.*set "thresholding": false'),
    (lambda: Plan.from_config(DPM | {"variance_type": "learned_range"}, 5), r'set "variance_type": null'),
    (lambda: Plan.from_config(DPM | {"solver_order": 4}, 5), r"solver_order=4.*from 1 to 3"),
    (lambda: Plan.from_config(resolve("IPNDMScheduler", DPM), 5), r"trigonometric.*use 'ipndm'"),
    (lambda: resolve("heun", {"_class_name": "EDMEulerScheduler"}), r"EDM precond.*expected one of euler, dpm\+\+_2m"),
    (lambda: Plan.from_config(resolve("unipc", DPM | {"predict_x0": False}), 5), r'"final_sigmas_type": "sigma_min"'),
    (lambda: Plan.from_config(resolve("unipc", DPM | {"lower_order_final": False}), 5), r'"lower_order_final": true'),
    (lambda: Plan.from_config(resolve("unipc", DPM | {"disable_corrector": [-1]}), 5), r"disable_corrector=\[-1\]"),
    (lambda: Plan.from_config(resolve("unipc", DPM | {"solver_p": "ddim"}), 5), r"solver_p='ddim'.*accepts None"),
    (lambda: Plan.from_config(resolve("ddpm", DPM | {"variance_type": "fixed_large_log"}), 5), r"variance_type"),
    (lambda: Plan.from_config(resolve("pndm", DPM | {"prediction_type": "sample"}), 5), r"'epsilon', 'v_prediction'"),
    (lambda: Plan.from_config(resolve("pndm", DPM | {"skip_prk_steps": False}), 3), r"steps=3: .* at least 4 steps"),
    (lambda: Plan.from_config(resolve("lcm", DPM), 51), r"num_inference_steps=51 with original_inference_steps=50"),
    (lambda: Plan.from_config(resolve("flow_euler", {"use_dynamic_shifting": True}), 5), r"set a constant shift"),
    (lambda: Plan.from_config(DPM, 1000), r"repeat a timestep.*lower num_inference_steps"),
    *[
        (lambda steps=steps: Plan.from_config(EULER, steps), r"num_inference_steps=.* an integer from 1 to 1000")
        for steps in (0, -1, 2.0, "20", True, None, 1001)
    ],
    (lambda: Plan.from_config(EULER, 5, timesteps=[9, 5]), r"num_inference_steps=5, but there are 2 custom steps"),
    (lambda: Plan.from_config(EULER, timesteps=[5, 9]), r"timesteps=\[5.0, 9.0\]: expected strictly decreasing"),
    (lambda: Plan.from_config(EULER, timesteps=[1000, 9]), r"from 0 to 999"),
    (lambda: Plan.from_config(EULER, timesteps=[]), r"at least one"),
    (lambda: Plan.from_config(EULER, sigmas=[1.0]), r"at least two"),
    (lambda: Plan.from_config(EULER, timesteps=[9], sigmas=[1.0, 0]), r"pass only one of them"),
    (lambda: Plan.from_config(DDIM, timesteps=[9, 5]), r"DDIMScheduler does not accept timesteps; these do: DDPM"),
    (lambda: Plan.from_config(DDIM, sigmas=[9, 5]), r"does not accept sigmas; these do: LMSDiscreteScheduler"),
    (lambda: Plan.from_config(DPM | {"use_karras_sigmas": True}, timesteps=[9, 5]), r"use_karras_sigmas: drop one"),
    (lambda: Plan.from_config(EULER, 5, eta=0.5), r"EulerDiscreteScheduler does not accept eta; these do: DDIM"),
    (lambda: Plan.from_config(DDIM, 5, eta=1.5), r"eta=1.5: expected a number from 0"),
    (lambda: Plan.from_config(DDIM, 5, strength=0.0), r"strength=0.0: expected > 0"),
    (lambda: Plan.from_config(DDIM, 5, strength=0.1), r"strength=0.1 leaves none of 5 steps"),
    (lambda: Plan.from_config(DDIM, 5, strength=0.5, denoising_start=0.5), r"pass only one of them"),
    (lambda: Plan.from_config(DDIM, 5, denoising_start=1.0), r"denoising_start=1.0: expected >= 0"),
    (lambda: Plan.from_config(DDIM, 5, denoising_start=0.5, denoising_end=0.4), r"expected > denoising_start"),
]


@pytest.mark.parametrize(("call", "message"), REFUSALS, ids=[message[:40] for _, message in REFUSALS])
def test_refusals_say_what_to_do(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(SchedulerError, match=message):
        call()


def test_resolve_takes_names_configs_and_changes() -> None:
    checkpoint = {"_class_name": "PNDMScheduler", **SD, "steps_offset": 1, "skip_prk_steps": True}
    assert resolve(None, checkpoint) == checkpoint
    assert resolve(DPM, checkpoint) == DPM
    assert resolve({"steps_offset": 0}, checkpoint) == checkpoint | {"steps_offset": 0}
    assert resolve("ddim", checkpoint)["clip_sample"] is False
    assert resolve("ddim", checkpoint | {"clip_sample": True})["clip_sample"] is True
    karras = resolve("dpm++_2m_karras", checkpoint | {"use_exponential_sigmas": True, "solver_order": 3})
    assert (karras["use_karras_sigmas"], karras["use_exponential_sigmas"], karras["solver_order"]) == (True, False, 2)
    assert checkpoint == {"_class_name": "PNDMScheduler", **SD, "steps_offset": 1, "skip_prk_steps": True}
