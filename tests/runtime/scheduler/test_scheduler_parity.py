"""Plans against diffusers' own schedulers: each call's model input, clean prediction and timestep, in 5,000 cases.

Both sides are driven by the same nonlinear toy model, so an error at one call shows at the next ones.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from support.scheduler_cases import (
    CLASSES,
    DDIM,
    DDPM,
    DEIS,
    DPM,
    DPM2,
    DPM2_A,
    DPM_S,
    EDM,
    EDM_DPM,
    EULER,
    EULER_A,
    FLOW,
    HEUN,
    LATENT_BETAS,
    LCM,
    LMS,
    PNDM,
    PREDICTIONS,
    SA,
    TCD,
    UNIPC,
    all_cases,
    case,
    computed_wide,
    lost_by_diffusers,
    rejected_by_diffusers,
    tolerance,
)
from support.scheduler_reference import difference, diffusers_scheduler, run_diffusers, run_plan

from latentrt.runtime.errors import SchedulerError
from latentrt.runtime.scheduler import Plan, resolve
from latentrt.runtime.scheduler.diffusers_options import OPTIONS, UNPLANNED
from latentrt.runtime.scheduler.samplers import SAMPLERS

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """With tiny tensors, more threads only cost time."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


AT_LEAST = {
    DDIM: 360, DDPM: 230, PNDM: 110, LMS: 300, EULER: 520, EULER_A: 80, HEUN: 320, DPM2: 200, DPM2_A: 180,
    DPM: 850, DPM_S: 420, DEIS: 350, UNIPC: 700, LCM: 50, TCD: 90, FLOW: 120,
    SA: 500, EDM: 55, EDM_DPM: 150,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("class_name", CLASSES)
def test_replay_is_what_diffusers_computes(class_name: str) -> None:
    compared, failures = 0, []
    for config, steps, eta in all_cases(class_name):
        rejected, wide = rejected_by_diffusers(config, steps), computed_wide(config)
        try:
            scheduler = diffusers_scheduler(config)
            scheduler.set_timesteps(steps)
            theirs = run_diffusers(scheduler, eta, wide=wide)
            finite = all(np.isfinite(x).all() for x in theirs["inputs"])
        except (NotImplementedError, ValueError, IndexError, RuntimeError):
            finite = False
        if finite == bool(rejected) and not lost_by_diffusers(config, steps):
            failures.append(f"{config} {steps} steps: rejected by diffusers: {not finite}, listed: {rejected!r}")
        if not finite:
            continue
        if lost_by_diffusers(config, steps):
            continue
        compared += 1
        plan = Plan.from_config(config, steps, eta=eta or None)
        problem = difference(run_plan(plan, wide=wide), theirs, tolerance(config))
        if problem:
            failures.append(f"{config} {steps} steps, eta {eta}: {problem}")
    assert not failures, f"{len(failures)} of {compared} cases:\n" + "\n".join(failures[:10])
    assert compared >= AT_LEAST[class_name]


CUSTOM_TIMESTEPS = [999, 850, 736, 645, 545, 455, 343, 233, 124, 24]
CUSTOM_SIGMAS = [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.0]


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize(
    ("class_name", "custom"),
    [
        (EULER, {"timesteps": CUSTOM_TIMESTEPS}),
        (EULER, {"timesteps": [990.5, 400.25, 3.0]}),
        (EULER, {"sigmas": CUSTOM_SIGMAS}),
        (EULER, {"sigmas": [9.0, 1.0, 0.25]}),
        (HEUN, {"timesteps": CUSTOM_TIMESTEPS}),
        (DDPM, {"timesteps": CUSTOM_TIMESTEPS}),
        (DPM, {"timesteps": CUSTOM_TIMESTEPS}),
        (DPM, {"timesteps": list(range(990, 0, -40))}),
        (DPM_S, {"timesteps": CUSTOM_TIMESTEPS}),
        (LCM, {"timesteps": [999, 759, 499, 259]}),
        (TCD, {"timesteps": [999, 700, 500, 259, 3]}),
    ],
)
def test_custom_timesteps_and_sigmas(class_name: str, custom: dict[str, Any], prediction: str) -> None:
    config, _, _ = case(class_name, 0, prediction_type=prediction, steps_offset=1)
    scheduler = diffusers_scheduler(config)
    scheduler.set_timesteps(**custom)
    eta = 0.4 if class_name == TCD else None
    plan = Plan.from_config(config, **custom, eta=eta)
    wide = computed_wide(config)
    assert not difference(run_plan(plan, wide=wide), run_diffusers(scheduler, eta or 0.0, wide=wide))


def test_which_classes_take_custom_steps_is_what_diffusers_says() -> None:
    import inspect

    import diffusers

    for class_name in CLASSES:
        sampler = SAMPLERS[class_name]
        theirs = inspect.signature(getattr(diffusers, class_name).set_timesteps).parameters
        if class_name in (FLOW, EDM):  # in diffusers both are shifted by one, or mean a ramp from 0 to 1
            continue
        assert ("timesteps" in theirs) == ("timesteps" in sampler.takes), class_name
        if class_name != UNIPC:  # sigmas of flow matching only
            assert ("sigmas" in theirs) <= ("sigmas" in sampler.takes), class_name
        assert ("eta" in inspect.signature(getattr(diffusers, class_name).step).parameters) <= ("eta" in sampler.takes)
        assert sampler.order == getattr(diffusers, class_name).order


CHECKPOINTS: dict[str, dict[str, Any]] = {
    "sd15": {
        "_class_name": PNDM,
        "_diffusers_version": "0.6.0",
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "num_train_timesteps": 1000,
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
        "trained_betas": None,
    },
    "sd21": {
        "_class_name": DDIM,
        **LATENT_BETAS,
        "clip_sample": False,
        "prediction_type": "v_prediction",
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
        "trained_betas": None,
    },
    "sdxl": {
        "_class_name": EULER,
        **LATENT_BETAS,
        "clip_sample": False,
        "interpolation_type": "linear",
        "sample_max_value": 1.0,
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
        "timestep_spacing": "leading",
        "use_karras_sigmas": False,
    },
    "euler_with_ends": {"_class_name": EULER, **LATENT_BETAS, "sigma_min": 0.1, "sigma_max": 9.0},
    "dpm_of_second_order": {"_class_name": DPM, **LATENT_BETAS, "solver_type": "heun", "algorithm_type": "dpmsolver"},
    "lcm": {
        "_class_name": LCM,
        **LATENT_BETAS,
        "clip_sample": False,
        "original_inference_steps": 50,
        "timestep_scaling": 10.0,
        "rescale_betas_zero_snr": False,
        "timestep_spacing": "leading",
    },
}
NAMES = [
    (name, class_name, dict(fixed))
    for class_name in CLASSES
    for name, fixed in SAMPLERS[class_name].names.items()
    # bh1 ends in NaN there
    if "cfg_pp" not in fixed and fixed.get("solver_type") != "bh1"
]
SUFFIXED = [
    ("euler_karras", EULER, {"use_karras_sigmas": True}),
    ("euler_exponential", EULER, {"use_exponential_sigmas": True}),
    ("euler_beta", EULER, {"use_beta_sigmas": True}),
    ("lms_karras", LMS, {"use_karras_sigmas": True}),
    ("dpm2_a_karras", DPM2_A, {"use_karras_sigmas": True}),
    ("dpm++_2m_karras", DPM, {"use_karras_sigmas": True, "algorithm_type": "dpmsolver++"}),
    (
        "dpm++_2m_sde_karras",
        DPM,
        {"use_karras_sigmas": True, "algorithm_type": "sde-dpmsolver++", "solver_order": 2},
    ),
    ("unipc_beta", UNIPC, {"use_beta_sigmas": True}),
]


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
@pytest.mark.parametrize(("name", "class_name", "changes"), NAMES + SUFFIXED, ids=[n[0] for n in NAMES + SUFFIXED])
def test_switching_follows_from_config(checkpoint: str, name: str, class_name: str, changes: dict[str, Any]) -> None:
    import diffusers

    config = CHECKPOINTS[checkpoint]
    where_missing = {k[:-1]: config.get(k[:-1], v) for k, v in changes.items() if k.endswith("?")}
    changes = {k: v for k, v in changes.items() if not k.endswith("?")} | where_missing
    scheduler = getattr(diffusers, class_name).from_config(config, **changes)
    scheduler.set_timesteps(9)
    wide = name == "heun"
    ours = run_plan(Plan.from_config(resolve(name, config), 9), wide=wide)
    assert not difference(ours, run_diffusers(scheduler, 0.0, wide=wide))


def test_defaults_that_diffusers_filled_in_do_not_survive_a_switch() -> None:
    """The default spacing is `leading` for PNDM, and `linspace` for Euler from the same file."""
    import diffusers

    filled = dict(diffusers.PNDMScheduler.from_config(CHECKPOINTS["sd15"]).config)
    assert filled["timestep_spacing"] == "leading"
    assert Plan.from_config(resolve("euler", filled), 10).timesteps[0] == 999
    saved = {key: value for key, value in filled.items() if key != "_use_default_values"}
    assert Plan.from_config(resolve("euler", saved), 10).timesteps[0] == 901


def test_option_table_holds_the_constructors_defaults() -> None:
    import inspect

    import diffusers

    handed_on = {"sigma_min": None, "sigma_max": None}
    for class_name, options in OPTIONS.items():
        if class_name == "DPMSolverSDEScheduler":  # diffusers imports it only where torchsde is installed
            continue
        signature = inspect.signature(getattr(diffusers, class_name).__init__)
        theirs = {name: parameter.default for name, parameter in signature.parameters.items() if name != "self"}
        assert {**(handed_on if "use_karras_sigmas" in theirs else {}), **theirs} == options, class_name
    assert all(hasattr(diffusers, class_name) for class_name in UNPLANNED)


def test_where_diffusers_is_not_followed() -> None:
    """Each of these fails in diffusers; a plan raises a clear error or does what was meant."""
    trailing, _, _ = case(EULER, 61, timestep_spacing="trailing")
    scheduler = diffusers_scheduler(trailing)
    scheduler.set_timesteps(61)
    assert (len(scheduler.timesteps), float(scheduler.timesteps[-1])) == (62, -1.0)
    np.testing.assert_allclose(Plan.from_config(trailing, 61).timesteps, scheduler.timesteps[:61])

    repeated, _, _ = case(DDIM, 1000, steps_offset=1)
    scheduler = diffusers_scheduler(repeated)
    scheduler.set_timesteps(1000)
    with pytest.raises(IndexError):
        run_diffusers(scheduler, 0.0, wide=False, end=1)
    with pytest.raises(SchedulerError, match="steps_offset=1 with 1000 steps results in timestep 1000"):
        Plan.from_config(repeated, 1000)

    ending, _, _ = case(DPM, 20, algorithm_type="dpmsolver")
    with pytest.raises(ValueError, match="sigma_min"):
        diffusers_scheduler(ending)
    with pytest.raises(SchedulerError, match='"final_sigmas_type": "sigma_min"'):
        Plan.from_config(ending, 20)

    sde, _, _ = case(DPM, 20, algorithm_type="sde-dpmsolver", solver_order=3, final_sigmas_type="sigma_min")
    scheduler = diffusers_scheduler(sde)
    scheduler.set_timesteps(20)
    with pytest.raises(UnboundLocalError):
        run_diffusers(scheduler, 0.0, wide=False)
    with pytest.raises(SchedulerError, match='"solver_order": 2'):
        Plan.from_config(sde, 20)

    zero_snr, _, _ = case(DDIM, 4, timestep_spacing="trailing", rescale_betas_zero_snr=True)
    with pytest.raises(SchedulerError, match="v_prediction"):
        Plan.from_config(zero_snr, 4)
