"""Random configs: plans follow diffusers, and end at the prediction of a constant model. Errors for invalid ones."""

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from support.scheduler_cases import (
    CLASSES,
    FLOW,
    HEUN,
    LCM,
    LMS,
    MULTISTEP,
    PNDM,
    RESPACINGS,
    TCD,
    lost_by_diffusers,
    rejected_by_diffusers,
    tolerance,
)
from support.scheduler_reference import SHAPE, difference, diffusers_scheduler, run_diffusers, run_plan

from latentrt.runtime.errors import SchedulerError
from latentrt.runtime.scheduler import Plan
from latentrt.runtime.scheduler.config import checked_options
from latentrt.runtime.scheduler.diffusers_options import CHOICES, CLASS_CHOICES, OPTIONS, REFUSED
from latentrt.runtime.scheduler.own_options import KNOWN_KEYS

pytestmark = pytest.mark.filterwarnings("ignore")
RANDOM = settings(derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
LEFT_OUT = {"beta_start", "beta_end", "num_train_timesteps", "steps_offset", "trained_betas"}


@st.composite
def valid_configs(draw: st.DrawFn) -> tuple[dict[str, Any], int, float | None]:
    """A class, random values of all options with choices, betas, steps and eta."""
    class_name = draw(st.sampled_from(CLASSES))
    defaults = OPTIONS[class_name]
    config: dict[str, Any] = {"_class_name": class_name}
    for key, default in defaults.items():
        choices = CLASS_CHOICES.get(class_name, {}).get(key) or CHOICES.get(key)
        if key in LEFT_OUT or key in RESPACINGS:
            continue
        if key == "beta_schedule":  # with the cosine schedule's sigma of 20,000 no digits are left to compare
            config[key] = draw(st.sampled_from(("linear", "scaled_linear")))
        elif choices:
            config[key] = draw(st.sampled_from(choices))
        elif isinstance(default, bool):
            config[key] = draw(st.sampled_from([v for v in (False, True) if (key, v) not in REFUSED]))
    respacing = draw(st.sampled_from([None, None, *(key for key in RESPACINGS if key in defaults)]))
    if respacing:
        config[respacing] = True
    if "beta_start" in defaults:
        config["beta_start"] = draw(st.floats(1e-4, 2e-3))
        config["beta_end"] = draw(st.floats(5e-3, 2e-2))
    if "steps_offset" in defaults and class_name not in (LCM, TCD):
        config["steps_offset"] = draw(st.integers(0, 1))
    steps = draw(st.integers(1, 40))
    return config, steps, draw(st.sampled_from([None, 0.3, 1.0])) if class_name in ("DDIMScheduler", TCD) else None


def compiled(config: dict[str, Any], steps: int, eta: float | None) -> Plan:
    """The plan, if the options are compatible; incompatible ones are tested elsewhere."""
    try:
        return Plan.from_config(config, steps, eta=eta)
    except SchedulerError:
        assume(False)
        raise


@pytest.mark.slow
@given(valid_configs())
@settings(RANDOM, max_examples=200)
def test_random_configs_follow_diffusers(case: tuple[dict[str, Any], int, float | None]) -> None:
    config, steps, eta = case
    # These classes truncate timesteps to integers: 998.9999999 or 999 depends on the last bit of PyTorch's square root.
    assume(config["_class_name"] not in MULTISTEP or not {"use_exponential_sigmas", "use_beta_sigmas"} & {*config})
    # With zero terminal SNR that bit decides about sigmas near timestep 0, so only betas of real models are compared.
    assume(not config.get("rescale_betas_zero_snr"))
    plan = compiled(config, steps, eta)
    assume(not rejected_by_diffusers(config, steps) and not lost_by_diffusers(config, steps))
    scheduler = diffusers_scheduler(config)
    scheduler.set_timesteps(steps)
    theirs = run_diffusers(scheduler, eta or 0.0, wide=True)
    assume(all(np.isfinite(x).all() for x in theirs["inputs"]))
    assert not difference(run_plan(plan, wide=True), theirs, tolerance(config))


@given(valid_configs(), st.integers(0, 2**32))
@settings(RANDOM, max_examples=200)
def test_a_model_that_knows_the_picture_draws_it(case: tuple[dict[str, Any], int, float | None], seed: int) -> None:
    """With a constant model, a plan that ends without noise ends at its prediction, whatever noise it draws."""
    config, steps, eta = case
    config |= {"set_alpha_to_one": True} if "set_alpha_to_one" in config else {}
    # PNDM calls one timestep at two noise levels, which the model cannot know; LCM adds the sample itself.
    assume(config["_class_name"] not in (PNDM, LCM, FLOW))
    plan = compiled(config, steps, eta)
    assume(plan.noise_levels[-1, 1] == 0 and plan.noise_levels[0, 0] > 1e-3)
    assume(config.get("variance_type") != "fixed_large")  # also adds noise at the end
    rng = np.random.default_rng(seed)
    picture = rng.standard_normal(SHAPE)
    levels = iter(plan.noise_levels[:-1])

    def model(x: np.ndarray, _: Any) -> np.ndarray:
        alpha, sigma = (float(value) for value in next(levels))
        eps = (x - alpha * picture) / sigma
        kinds = {"epsilon": eps, "sample": picture, "v_prediction": alpha * eps - sigma * picture}
        if "sigma_schedule" in config:  # EDM, where x is scaled for data of deviation 1/2
            network = (picture - 0.25 * alpha * x) / (0.5 * sigma)
            kinds = {"epsilon": network, "v_prediction": -network}
        return kinds[config.get("prediction_type", "epsilon")]

    drawn = plan.replay(model, rng.standard_normal(SHAPE), draw=lambda: rng.standard_normal(SHAPE))
    np.testing.assert_allclose(drawn, picture, atol=2e-3)


@given(st.sampled_from(CLASSES), st.text(min_size=1), st.sampled_from([True, 0, None, "zero"]))
@settings(RANDOM, max_examples=200)
def test_any_unknown_key_is_refused(class_name: str, key: str, value: Any) -> None:
    assume(not key.startswith("_") and key not in KNOWN_KEYS)
    with pytest.raises(SchedulerError, match="unknown scheduler config key"):
        checked_options({"_class_name": class_name, "clip_sample": False, key: value})


@pytest.mark.parametrize("class_name", CLASSES)
def test_any_nonlinear_option_is_refused(class_name: str) -> None:
    refused = [(key, value) for key, value in REFUSED if key in OPTIONS[class_name]]
    for key, value in refused:
        with pytest.raises(SchedulerError, match=key):
            checked_options({"_class_name": class_name, "clip_sample": False, key: value})


def test_classes_of_the_slow_kind_are_drawn() -> None:
    """The strategy generates every class, so the tests above cover all of them."""
    drawn = set()

    @given(valid_configs())
    @settings(RANDOM, max_examples=500, database=None)
    def collect(case: tuple[dict[str, Any], int, float | None]) -> None:
        drawn.add(case[0]["_class_name"])

    collect()
    assert drawn == set(CLASSES), {HEUN, LMS} - drawn
