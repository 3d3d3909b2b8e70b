"""All plans of a scheduler with one number of steps: the one that begins from noise, and one for each start.

A strength does no more than choose a start: a number of steps that are kept. So the plans of all strengths are few.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from latentrt.runtime.errors import SchedulerError

from .plan import Plan
from .schedules import Options, Steps
from .solving import PART, counted_steps, plan_arrays


def plan_from_noise(options: Options, steps: int) -> Plan:
    """The plan for checked options without a strength. Raises `SchedulerError` as `Plan.from_config`."""
    return _plan(options, Steps(steps), None)


def plans_of_starts(options: Options, steps: int) -> Iterator[Plan | None]:
    """The plans that keep 1, 2, … steps; None where `Plan.from_config` refuses the strengths that give it.

    A strength keeps `min(int(counted * strength), counted)` steps, as in diffusers' image-to-image pipelines; `counted`
    is the number of plans that this yields.
    """
    counted = counted_steps(options, steps)
    for kept in range(1, counted + 1):
        # In the middle, so that no rounding gives another number of steps.
        strength = 1.0 if kept == counted else (kept + 0.5) / counted
        try:
            yield _plan(options, Steps(steps), strength)
        except SchedulerError:
            yield None


def plans_within(options: Options, steps: int) -> Iterator[Plan | None]:
    """The plans of `timesteps_within` for `left` from `steps` to `original_inference_steps`; None as above.

    A strength gives `left = int(original_inference_steps * strength)`.
    """
    for left in range(steps, options["original_inference_steps"] + 1):
        try:
            yield _plan(options, Steps(steps, timesteps=tuple(timesteps_within(options, steps, left))), 1.0)
        except SchedulerError:
            yield None


def timesteps_within(options: Options, steps: int, left: int) -> list[float]:
    """`steps` timesteps of the last `left` that LCM was distilled on, for image-to-image with distilled models."""
    stride = options["num_train_timesteps"] // options["original_inference_steps"]
    times = [i * stride - 1 for i in range(left, 0, -1)]
    return [float(times[int(i)]) for i in np.linspace(0, left, steps, endpoint=False)]


def _plan(options: Options, steps: Steps, strength: float | None) -> Plan:
    part: dict[str, Any] = dict.fromkeys(PART) | {"strength": strength, "eta": float(options.get("eta", 0))}
    return Plan(**plan_arrays({**options, **part}, steps))
