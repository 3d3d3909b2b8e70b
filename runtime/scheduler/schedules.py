"""Schedules: timesteps, and the noise levels before and after every model call.

One function for each way in which diffusers' classes lay out their steps. Knows nothing about samplers; expects options
that `config` has completed and checked.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from latentrt.runtime.errors import SchedulerError

from . import sigmas as sg
from .spacings import (
    LevelTable,
    Options,
    Steps,
    alphas_above_zero,
    alphas_cumprod,
    distilled_timesteps,
    open_timesteps,
    respaced,
    sigma_line,
    whole_timesteps,
)

__all__ = ["Options", "Schedule", "Steps"]


@dataclass(frozen=True, slots=True, eq=False)
class Schedule:
    """The noise levels of M model calls, float64.

    A noise level is a pair (alpha, sigma) of a sample `alpha * clean + sigma * noise`. The model's input is the sample
    divided by `hypot(alpha, sigma)`, so samplers may keep alpha at 1 (variance exploding, Karras et al. 2022) or
    `alpha**2 + sigma**2` at 1 (variance preserving).

    Attributes:
        timesteps: (M,) the model's timestep input, fractional for some classes.
        levels: (M, 2) noise level of the sample before call i.
        targets: (M, 2) noise level after call i. Usually `levels[i + 1]`; DDIM differs.
        initial: the first sample is `initial` times unit noise.
        anchors: (M, 2) an additional level for samplers that need one: the start of a PNDM step, the intermediate
            level of TCD.
        normalised: whether the model's input is divided as above; flow matching passes the sample unchanged.
    """

    timesteps: sg.Float64
    levels: sg.Float64
    targets: sg.Float64
    initial: float = 1.0
    anchors: sg.Float64 = field(default_factory=lambda: np.empty((0, 2)))
    normalised: bool = True

    @property
    def input_scales(self) -> sg.Float64:
        """(M,): model input = scale * sample."""
        sizes = np.hypot(self.levels[:, 0], self.levels[:, 1]) if self.normalised else np.ones(len(self.levels))
        return np.asarray(1 / sizes, np.float64)


def strided(options: Options, steps: Steps) -> Schedule:
    """DDIM: integer timesteps; each call steps down by `num_train_timesteps // steps`, whatever the spacing.

    With a spacing whose stride differs (`trailing` when steps does not divide num_train_timesteps), a call's target is
    therefore not exactly the next call's level. This follows diffusers.
    """
    levels = LevelTable(options, final=1.0 if options["set_alpha_to_one"] else None)
    times = whole_timesteps(options, steps)
    return Schedule(times, levels[times], levels[times - options["num_train_timesteps"] // steps.count])


def consecutive(options: Options, steps: Steps) -> Schedule:
    """DDPM: integer timesteps; each call steps to the next one's level, the last to clean latents."""
    levels = LevelTable(options, final=1.0)
    times = whole_timesteps(options, steps)
    return Schedule(times, levels[times], levels[np.append(times[1:], -1)])


def pseudo_multistep(options: Options, steps: Steps) -> Schedule:
    """PNDM: with `skip_prk_steps` the second timestep occurs twice; otherwise the first three steps take 4 calls each.

    An anchor is the start of a call's step: the first of the four calls, or one stride earlier.
    """
    levels = LevelTable(options, final=1.0 if options["set_alpha_to_one"] else None)
    stride = options["num_train_timesteps"] // steps.count
    times = whole_timesteps(options, steps)
    if options["skip_prk_steps"]:
        times = np.concatenate([times[:1], times[1:2], times[1:]])
        return Schedule(times, levels[times], levels[times - stride], anchors=levels[times + stride])
    if steps.count < 4:
        raise SchedulerError(
            f"num_inference_steps={steps.count}: PNDM with skip_prk_steps=false needs at least 4 steps; "
            'set "skip_prk_steps": true, as Stable Diffusion checkpoints do'
        )
    half = stride // 2
    warm_up = [[t, next_t + half, next_t + half, next_t] for t, next_t in itertools.pairwise(times[:4])]
    ends = [[t - half, next_t + half, next_t + half - half, next_t] for t, next_t in itertools.pairwise(times[:4])]
    calls = np.concatenate([*warm_up, times[3:]])
    targets = np.concatenate([*ends, times[3:] - stride])
    begins = np.concatenate([np.repeat(times[:3], 4), times[3:]])
    return Schedule(calls, levels[calls], levels[targets], anchors=levels[begins])


def distilled(options: Options, steps: Steps) -> Schedule:
    """LCM: evenly spaced choices from the `original_inference_steps` timesteps that the model was distilled on."""
    levels = LevelTable(options, final=1.0)
    times = distilled_timesteps(options, steps)
    return Schedule(times, levels[times], levels[np.append(times[1:], times[-1])])


def distilled_strategic(options: Options, steps: Steps) -> Schedule:
    """TCD: timesteps of `distilled`, ending at timestep 0; an anchor is eta of the way from the target to 0."""
    levels = LevelTable(options, final=1.0)
    times = distilled_timesteps(options, steps)
    targets = np.append(times[1:], 0)
    below = np.floor(np.float32(1 - options["eta"]) * targets.astype(np.float32))
    return Schedule(times, levels[times], levels[targets], anchors=levels[below])


def sigma_steps(options: Options, steps: Steps) -> Schedule:
    """Euler and related samplers: fractional timesteps, variance exploding."""
    table = sg.sigmas_from_alphas(alphas_above_zero(options))
    times: sg.Floats
    if steps.sigmas is not None:
        line = np.asarray(steps.sigmas, np.float32)
        times = sg.timestep_from_sigma(line[:-1], np.log(table))
    else:
        times, line = sigma_line(options, steps, table)
    exact = line.astype(np.float64)
    if options.get("timestep_type") == "continuous" and options["prediction_type"] == "v_prediction":
        if steps.timesteps is not None:
            raise SchedulerError("custom timesteps are not possible with timestep_type='continuous': pass sigmas")
        times = 0.25 * np.log(exact[:-1])
    levels = _exploding(exact)
    return Schedule(_float32(times), levels[:-1], levels[1:], _initial(options, exact))


def repeated(options: Options, steps: Steps) -> Schedule:
    """Heun: `sigma_steps` with two calls per step, at its start and at its end."""
    once = sigma_steps(options, steps)
    twice = np.repeat(np.arange(steps.count), 2)[1:]
    levels = once.levels[twice]
    return Schedule(once.timesteps[twice], levels, np.vstack([levels[1:], once.targets[-1:]]), once.initial)


def interleaved(options: Options, steps: Steps) -> Schedule:
    """DPM2: `sigma_steps` with two calls per step, at its start and at the geometric mean of its sigmas."""
    return _interleaved(options, steps, lambda _, s_next: s_next)


def interleaved_ancestral(options: Options, steps: Steps) -> Schedule:
    """DPM2 ancestral: `interleaved` with the geometric mean of sigma and `s_down`; noise is added after `s_down`."""
    return _interleaved(options, steps, lambda s, s_next: s_next**2 / s)


def _interleaved(options: Options, steps: Steps, towards: Callable[[Any, Any], Any]) -> Schedule:
    # diffusers rounds respaced timesteps only for Karras sigmas, and never those of the middle calls.
    table = sg.sigmas_from_alphas(alphas_cumprod(options))
    times, line = sigma_line(options, steps, table)
    if options["use_karras_sigmas"]:
        times = np.round(times)
    exact = line.astype(np.float64)
    middles = np.sqrt(exact[:-2] * towards(exact[:-2], exact[1:-1]))
    sigmas = np.append(np.insert(middles, np.arange(steps.count), exact[:-1])[: 2 * steps.count - 1], 0.0)
    between = sg.timestep_from_sigma(middles, np.log(table))
    all_times = np.insert(between, np.arange(steps.count), times)[: 2 * steps.count - 1]
    levels = _exploding(sigmas)
    return Schedule(_float32(all_times), levels[:-1], levels[1:], _initial(options, exact))


def log_snr_steps(
    options: Options, steps: Steps, *, rounds_cosine: bool = False, ends_respaced: bool = True, final: str = "zero"
) -> Schedule:
    """DPM-Solver and related samplers: integer timesteps, variance preserving.

    Args:
        rounds_cosine: whether the class also rounds Karras timesteps of the cosine schedule, instead of truncating.
        ends_respaced: whether "sigma_min" is the lowest of the respaced sigmas instead of the lowest training sigma.
        final: `final_sigmas_type` of a class without that option.
    """
    alphas = alphas_above_zero(options)
    table = sg.sigmas_from_alphas(alphas)
    line = respaced(options, steps, table[::-1])
    lowest = table[0] if line is None or not ends_respaced else line[-1]
    if line is not None:
        times = sg.timestep_from_sigma(line, np.log(table))
        cosine = options["beta_schedule"] == "squaredcos_cap_v2" and not rounds_cosine
        if (options["use_karras_sigmas"] or options.get("use_lu_lambdas")) and not cosine:
            times = np.round(times)
    else:
        times = np.asarray(steps.timesteps) if steps.timesteps is not None else open_timesteps(options, steps, alphas)
        line = np.interp(times, np.arange(len(table)), table)
    end = 0.0 if options.get("final_sigmas_type", final) == "zero" else lowest
    exact = np.append(line, end).astype(np.float32).astype(np.float64)
    alpha = 1 / np.hypot(exact, 1)
    levels = np.stack([alpha, exact * alpha], 1)
    # The classes truncate timesteps to integers.
    return Schedule(np.trunc(times).astype(np.float64), levels[:-1], levels[1:])


def flow(options: Options, steps: Steps) -> Schedule:
    """Straight paths, `(1 - sigma) clean + sigma noise`, with the shift of arXiv:2403.03206, section 5.3.2."""
    train_steps, shift = options["num_train_timesteps"], options["shift"]

    def shifted(sigmas: sg.Floats) -> sg.Float64:
        return np.asarray(shift * sigmas / (1 + (shift - 1) * sigmas), np.float64)

    # diffusers shifts the ends in the constructor, and all sigmas again in `set_timesteps`.
    lowest = float(shifted(np.array([1 / train_steps], np.float32)).astype(np.float32)[0])
    line = shifted(np.linspace(train_steps, lowest * train_steps, steps.count) / train_steps)
    if options["shift_terminal"]:
        if steps.count == 1:
            raise SchedulerError("num_inference_steps=1: shift_terminal needs at least 2 steps")
        line = 1 - (1 - line) * (1 - options["shift_terminal"]) / (1 - line[-1])
    replaced = respaced(options, steps, line)
    line = (line if replaced is None else replaced).astype(np.float32)
    exact = np.append(line, 0.0).astype(np.float64)
    levels = np.stack([1 - exact, exact], 1)
    return Schedule(_float32(line * np.float32(train_steps)), levels[:-1], levels[1:], normalised=False)


def _exploding(sigmas: sg.Float64) -> sg.Float64:
    """Levels with alpha 1. Shape (n, 2)."""
    return np.stack([np.ones_like(sigmas), sigmas], 1)


def _float32(times: sg.Floats) -> sg.Float64:
    """Rounded to float32, as in PyTorch; returned as float64."""
    return times.astype(np.float32).astype(np.float64)


def _initial(options: Options, sigmas: sg.Float64) -> float:
    """`init_noise_sigma` of the variance-exploding classes."""
    highest = float(sigmas.max())
    return float(np.hypot(highest, 1)) if options["timestep_spacing"] == "leading" else highest
