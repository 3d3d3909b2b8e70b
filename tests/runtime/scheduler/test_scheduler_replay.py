"""Plans against recorded trajectories of diffusers' schedulers, in every case of the live comparison."""

from itertools import islice

import numpy as np
import pytest
from support.scheduler_cases import (
    CLASSES,
    DPM,
    all_cases,
    computed_wide,
    lost_by_diffusers,
    rejected_by_diffusers,
    tolerance,
)
from support.scheduler_reference import run_plan
from support.scheduler_replay import case_key, recorded, recorded_difference

from latentrt.runtime.scheduler import Plan


@pytest.mark.parametrize("class_name", CLASSES)
def test_replay_is_what_diffusers_computed(class_name: str) -> None:
    records, compared, failures = recorded(class_name), 0, []
    for config, steps, eta in all_cases(class_name):
        if rejected_by_diffusers(config, steps) or lost_by_diffusers(config, steps):
            continue
        key, theirs = next(records)
        assert key == case_key(config, steps, eta), "the cases have changed: run tests/data/make_scheduler_goldens.py"
        compared += 1
        plan = Plan.from_config(config, steps, eta=eta or None)
        problem = recorded_difference(run_plan(plan, wide=computed_wide(config)), theirs, tolerance(config))
        if problem:
            failures.append(f"{config} {steps} steps, eta {eta}: {problem}")
    assert not failures, f"{len(failures)} of {compared} cases:\n" + "\n".join(failures[:10])
    assert compared >= 50
    assert next(records, None) is None


def test_a_wrong_coefficient_is_found() -> None:
    found = 0
    cases = [c for c in all_cases(DPM) if not rejected_by_diffusers(*c[:2]) and not lost_by_diffusers(*c[:2])]
    for (config, steps, eta), (_, theirs) in islice(zip(cases, recorded(DPM), strict=True), 0, 60, 5):
        plan = Plan.from_config(config, steps, eta=eta or None)
        arrays = plan.to_arrays()
        call = len(plan) // 2
        changed = arrays["coefficients"].copy()
        changed[call, 0, np.abs(changed[call, 0, :-1]).argmax()] *= np.float32(1.001)
        wrong = Plan.from_arrays({**arrays, "coefficients": changed})
        found += bool(recorded_difference(run_plan(wrong, wide=computed_wide(config)), theirs, tolerance(config)))
    assert found == 12
