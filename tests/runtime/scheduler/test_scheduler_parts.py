"""Parts of a schedule against diffusers: image-to-image, base and refiner, and the noise levels of inpainting."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support.scheduler_cases import (
    CLASSES,
    DDIM,
    DPM,
    DPM2,
    DPM2_A,
    EDM,
    EDM_DPM,
    EULER,
    FLOW,
    HEUN,
    LCM,
    LMS,
    PNDM,
    SPACINGS,
    TCD,
    case,
)
from support.scheduler_reference import SHAPE, difference, diffusers_scheduler, run_diffusers, run_plan

from latentrt.runtime.errors import SchedulerError
from latentrt.runtime.scheduler import Plan

pytestmark = pytest.mark.filterwarnings("ignore")
# Flow matching has its own pipelines. For LMS, see below.
CUT = [name for name in CLASSES if name not in (FLOW, LMS)]


@pytest.mark.parametrize("class_name", CUT)
@pytest.mark.parametrize("steps", [5, 20, 31])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_parts_of_a_schedule(class_name: str, steps: int, spacing: str) -> None:
    """Image-to-image and the two halves of a base and refiner run, split by diffusers' own pipeline code."""
    from diffusers import StableDiffusionXLImg2ImgPipeline

    clean = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    offset = 0 if class_name in (LCM, TCD) else 1
    config, _, _ = case(class_name, steps, timestep_spacing=spacing, steps_offset=offset, skip_prk_steps=True)
    # EDM's timesteps are logarithms, of which a share means nothing
    starts = [] if class_name in (EDM, EDM_DPM) else [(None, 0.0), (None, 0.5), (None, 0.7)]
    for strength, start in [(0.3, None), (0.75, None), (1.0, None), *starts]:
        scheduler = diffusers_scheduler(config)
        scheduler.set_timesteps(steps)
        pipeline = SimpleNamespace(scheduler=scheduler)
        times, _ = StableDiffusionXLImg2ImgPipeline.get_timesteps(pipeline, steps, strength, "cpu", start)
        begin = len(scheduler.timesteps) - len(times)
        plan = Plan.from_config(config, steps, strength=strength, denoising_start=start)
        if start is not None:
            # The second half continues from the unchanged latents of the first one, without noise.
            scheduler.add_noise = lambda latents, *_: latents
        ours = run_plan(plan, wide=class_name == HEUN, clean=clean)
        theirs = run_diffusers(scheduler, 0.0, wide=class_name == HEUN, begin=begin, clean=clean)
        assert not difference(ours, theirs), (strength, start)


def test_lms_counts_its_past_from_where_it_begins() -> None:
    """diffusers weights the first slope as if three others preceded it, so the weights do not add up to the step."""
    config, _, _ = case(LMS, 20)
    plan = Plan.from_config(config, 20, strength=0.5)
    whole = Plan.from_config(config, 20)
    sigma, target = (float(plan.noise_levels[i, 1] / plan.noise_levels[i, 0]) for i in (0, 1))
    first = plan.coefficients[0, 0]
    size = np.hypot(target, 1)
    assert float(first[-2]) * size == pytest.approx(target - sigma, rel=1e-5)  # exactly Euler's step
    np.testing.assert_array_equal(plan.noise_levels, whole.noise_levels[10:])

    import torch

    scheduler = diffusers_scheduler(config)
    scheduler.set_timesteps(20)
    scheduler.set_begin_index(10)
    x = torch.zeros(SHAPE)
    stepped = scheduler.step(torch.ones(SHAPE), scheduler.timesteps[10], x).prev_sample
    assert float(stepped[0, 0, 0]) != pytest.approx(target - sigma, rel=1e-2)


def test_runge_kutta_steps_of_pndm_cannot_begin_in_the_middle() -> None:
    config, _, _ = case(PNDM, 20, skip_prk_steps=False)
    with pytest.raises(SchedulerError, match='"skip_prk_steps": true'):
        Plan.from_config(config, 20, strength=0.5)


@pytest.mark.parametrize("class_name", [DDIM, EULER, DPM])
def test_denoising_end_and_start_hand_over(class_name: str) -> None:
    config, _, _ = case(class_name, 20, timestep_spacing="leading", steps_offset=1)
    scheduler = diffusers_scheduler(config)
    scheduler.set_timesteps(20)
    cutoff = round(1000 - 0.8 * 1000)
    end = int((scheduler.timesteps >= cutoff).sum())
    first = Plan.from_config(config, 20, denoising_end=0.8)
    ours = run_plan(first, wide=False)
    assert not difference(ours, run_diffusers(scheduler, 0.0, wide=False, end=end))
    second = Plan.from_config(config, 20, denoising_start=0.8)
    assert len(first) + len(second) == 20
    whole = Plan.from_config(config, 20)
    handed = ours["inputs"][-1] * second.initial[0, 1]
    expected = run_plan(whole, wide=False)["inputs"][len(first)]
    np.testing.assert_allclose(handed, expected, atol=1e-5)


@pytest.mark.parametrize("class_name", [name for name in CLASSES if name != FLOW])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_noise_levels_and_blend_are_what_add_noise_gives(class_name: str, spacing: str) -> None:
    import torch

    config, _, _ = case(class_name, 7, timestep_spacing=spacing, skip_prk_steps=True)
    scheduler = diffusers_scheduler(config)
    scheduler.set_timesteps(7)
    plan = Plan.from_config(config, 7)
    clean, noise = torch.tensor([[1.0], [0.0]]), torch.tensor([[0.0], [1.0]])
    for i in range(len(plan)):
        if i:
            np.testing.assert_array_equal(plan.blend[i - 1], plan.noise_levels[i])
        if class_name in (DPM2, DPM2_A) and i % 2:
            continue  # in the middle of a step, diffusers uses the noise level of its end, a plan that of the middle
        row = noised_by_diffusers(scheduler, clean, noise, i)
        np.testing.assert_allclose(plan.noise_levels[i], row, rtol=1e-5)
    np.testing.assert_array_equal(plan.blend[-1], [1, 0])


def noised_by_diffusers(scheduler: Any, clean: Any, noise: Any, i: int) -> np.ndarray:
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(i)
    scheduler._step_index = None
    noised = scheduler.add_noise(clean, noise, scheduler.timesteps[[i, i]])
    return np.asarray(scheduler.scale_model_input(noised, scheduler.timesteps[i]).numpy().ravel())


def test_flow_matching_begins_on_the_straight_line() -> None:
    import torch

    config, _, _ = case(FLOW, 9, shift=3.0)
    scheduler = diffusers_scheduler(config)
    scheduler.set_timesteps(9)
    clean = np.random.default_rng(3).standard_normal(SHAPE).astype(np.float32)
    noise = np.random.default_rng(4).standard_normal(SHAPE).astype(np.float32)
    theirs = scheduler.scale_noise(torch.from_numpy(clean), scheduler.timesteps[3:4], torch.from_numpy(noise))
    plan = Plan.from_config(config, 9, strength=2 / 3)
    np.testing.assert_allclose(plan.initial[0, 0] * noise + plan.initial[0, 1] * clean, theirs.numpy(), rtol=1e-5)
