"""From checked options to the arrays of a plan: lays out the schedule, runs the sampler, cuts the part to run."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentrt.runtime.errors import SchedulerError
from latentrt.runtime.scheduler.samplers import REGISTERS, SAMPLERS, Call, Sampler, Walk

from .schedules import Options, Schedule, Steps
from .sigmas import Float64

PART = ("strength", "denoising_start", "denoising_end")
# Classes whose steps are not those of the training timesteps, so that no share of these can be cut off.
_UNCUT = ("RestartSampler", "DPMFastSampler", "EDMEulerScheduler", "EDMDPMSolverMultistepScheduler")


def coefficients(calls: Sequence[Call], scales: Float64) -> Float64:
    """Stack a sampler's calls: the next sample times its input scale, the kept registers, the clean latents.

    Returns: (M, R, R+2) float64.
    """
    table = np.zeros((len(calls), REGISTERS, REGISTERS + 2))
    for rows, call, scale in zip(table, calls, scales, strict=True):
        rows[0] = call.sample * scale
        for register, kept in enumerate(call.kept, start=1):
            rows[register] = kept
        rows[-1] = call.clean
    return table


@dataclass(frozen=True, slots=True, eq=False)
class Solved:
    """What a sampler does along a part of a schedule, in float64: the calls, and the schedule's row for each."""

    schedule: Schedule
    calls: Sequence[Call]

    @property
    def table(self) -> Float64:
        """(M, R, R+2), the plan's coefficients before they are rounded."""
        return coefficients(self.calls, np.append(self.schedule.input_scales[1:], 1.0))


def solved(options: Options, steps: Steps) -> Solved:
    """Run the sampler of checked options that hold `eta` and the part to run."""
    sampler = SAMPLERS[options["_class_name"]]
    schedule = sampler.schedule(options, steps)
    begin, end = _part(options, sampler, schedule, steps.count)
    if not sampler.walks:
        calls = list(itertools.islice(sampler.solve(schedule, options, begin), end - begin))
        return Solved(schedule.part(begin, end), calls)
    schedule = schedule.part(begin, end)
    sigmas = np.append(schedule.levels[:, 1], schedule.targets[-1, 1])
    try:
        calls = list(sampler.solve(Walk(sigmas, schedule.table.astype(np.float64), options)))
    except (ValueError, ZeroDivisionError, OverflowError) as error:  # of the logarithm or a quotient of sigmas
        raise SchedulerError(_why_not_finite(options, schedule, steps.count)) from error
    return Solved(schedule.along(np.array([call.sigma for call in calls])), calls)


def plan_arrays(options: Options, steps: Steps) -> dict[str, Any]:
    """The arrays of a `Plan` by name, for checked options that hold `eta` and the part to run."""
    # Divisions by zero show up in the result; `_why_not_finite` then gives the reason.
    with np.errstate(all="ignore"):
        result = solved(options, steps)
        table = result.table.astype(np.float32)
    schedule, calls = result.schedule, result.calls
    if not np.isfinite(table).all():
        raise SchedulerError(_why_not_finite(options, schedule, steps.count))
    scales = schedule.input_scales
    levels = schedule.levels * scales[:, None]
    initial = np.zeros((REGISTERS, 2))
    if options["denoising_start"] is not None:
        initial[0, 1] = scales[0]
    elif options["strength"] is not None:
        initial[0] = levels[0, ::-1]
    else:
        initial[0, 0] = schedule.initial * scales[0]
    return {
        "timesteps": schedule.timesteps.astype(np.float32),
        "coefficients": table,
        "initial": initial.astype(np.float32),
        "draws": _consumed_draws(calls),
        "noise_levels": np.vstack([levels, schedule.targets[-1]]).astype(np.float32),
        "blend": np.vstack([levels[1:], [1.0, 0.0]]).astype(np.float32),
        "guidance": np.array([call.guidance for call in calls], np.float32),
    }


def _consumed_draws(calls: Sequence[Call]) -> NDArray[np.bool_]:
    """(M,): calls that draw noise, without trailing ones whose noise has weight 0."""
    used = [i for i, call in enumerate(calls) if call.sample[-1] != 0]
    last = used[-1] if used else -1
    return np.array([call.draws and i <= last for i, call in enumerate(calls)])


def counted_steps(options: Options, steps: int) -> int:
    """The number of steps that a strength takes its share of, for checked options and the number asked for."""
    sampler = SAMPLERS[options["_class_name"]]
    if options.get("schedule_type") is None:
        return steps
    return _counted(options, sampler, sampler.schedule(options, Steps(steps)), steps)


def _counted(options: Options, sampler: Sampler, schedule: Schedule, steps: int) -> int:
    """Some schedule types give a few steps more or fewer."""
    return steps if options.get("schedule_type") is None else -(-len(schedule.timesteps) // sampler.order)


def _part(options: Options, sampler: Sampler, schedule: Schedule, steps: int) -> tuple[int, int]:
    """First call and end (exclusive) of the part to run, counted as in diffusers' image-to-image pipelines."""
    begin, end = 0, len(schedule.timesteps)
    steps = _counted(options, sampler, schedule, steps)
    train_steps, start, stop = (options[key] for key in ("num_train_timesteps", "denoising_start", "denoising_end"))
    if options["_class_name"] in _UNCUT and (start is not None or stop is not None):
        raise SchedulerError(
            f"{options['_class_name']} has steps of its own, so denoising_start and denoising_end have no meaning: "
            "choose another sampler, or strength"
        )
    if options["strength"] is not None:
        kept = min(int(steps * options["strength"]), steps)
        begin = (steps - kept) * sampler.order if kept else end
    if start is not None:
        left = int((schedule.timesteps < round(train_steps - start * train_steps)).sum())
        # Never split a step of two calls: all timesteps but the highest one come twice.
        begin = end - (left + 1 if sampler.order == 2 and left % 2 == 0 else left)
    if stop is not None:
        end = begin + int((schedule.timesteps[begin:] >= round(train_steps - stop * train_steps)).sum())
    if begin >= end:
        given = ", ".join(f"{k}={options[k]}" for k in PART if options[k] is not None)
        raise SchedulerError(f"{given} leaves none of {steps} steps: raise num_inference_steps or widen the range")
    return begin, end


def _why_not_finite(options: Options, schedule: Schedule, steps: int) -> str:
    if (schedule.levels[:, 0] == 0).any() and options["prediction_type"] == "epsilon":
        return (
            "with rescale_betas_zero_snr the last training timestep has no signal, so a model with prediction_type "
            '"epsilon" cannot predict clean latents there: use a v_prediction model, or '
            '"timestep_spacing": "leading"'
        )
    if not np.isfinite(schedule.levels).all():
        return "these betas leave no signal at a timestep, so its noise level is infinite: lower beta_end"
    return f"{steps} steps repeat a timestep, which gives a step of length 0: lower num_inference_steps"
