"""Schedules: timesteps, and the noise levels before and after every model call.

One function for each way in which diffusers' classes lay out their steps. Knows nothing about samplers; expects options
that `config` has completed and checked.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
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
    grid_line,
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
        data: standard deviation of clean latents that the model's input is scaled for, other than 1 for EDM.
        table: (T,) sigmas of the training timesteps, for samplers that lay out their own calls.
    """

    timesteps: sg.Float64
    levels: sg.Float64
    targets: sg.Float64
    initial: float = 1.0
    anchors: sg.Float64 = field(default_factory=lambda: np.empty((0, 2)))
    normalised: bool = True
    data: float = 1.0
    table: sg.Floats = field(default_factory=lambda: np.empty(0))

    @property
    def input_scales(self) -> sg.Float64:
        """(M,): model input = scale * sample."""
        sizes = (
            np.hypot(self.levels[:, 0] * self.data, self.levels[:, 1]) if self.normalised else np.ones(len(self.levels))
        )
        return np.asarray(1 / sizes, np.float64)

    def part(self, begin: int, end: int) -> "Schedule":
        """The calls from `begin` to before `end`."""
        rows = slice(begin, end)
        return replace(self, timesteps=self.timesteps[rows], levels=self.levels[rows], targets=self.targets[rows])

    def along(self, sigmas: sg.Float64) -> "Schedule":
        """Calls at other `sigmas` (M,) than those of the steps, to the same end, variance exploding."""
        known = dict(zip(self.levels[:, 1], self.timesteps, strict=True))
        between = _float32(sg.timestep_from_sigma(sigmas, np.log(self.table)))
        times = np.array([known.get(sigma, time) for sigma, time in zip(sigmas, between, strict=True)])
        levels = _exploding(sigmas)
        return replace(self, timesteps=times, levels=levels, targets=np.vstack([levels[1:], self.targets[-1:]]))


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
    return Schedule(times, levels[times], levels[np.append(times[1:], -1)])


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
    times, line = sigma_line(options, steps, table)
    exact = line.astype(np.float64)
    if options.get("timestep_type") == "continuous" and options["prediction_type"] == "v_prediction":
        if steps.timesteps is not None:
            raise SchedulerError("custom timesteps are not possible with timestep_type='continuous': pass sigmas")
        times = 0.25 * np.log(exact[:-1])
    exact = exact[: len(times) + 1]
    begins = _churned(options, exact)
    times = np.where(begins > exact[:-1], sg.timestep_from_sigma(begins, np.log(table)), times)
    initial = _initial(options, begins)
    return Schedule(_float32(times), _exploding(begins), _exploding(exact[1:]), initial, table=table)


def preconditioned(options: Options, steps: Steps) -> Schedule:
    """EDM: Karras et al. (2022), arXiv:2206.00364, table 1; the model's timestep is a quarter of log sigma."""
    n, low, high = steps.count, options["sigma_min"], options["sigma_max"]
    if steps.sigmas is not None:
        line = np.asarray(steps.sigmas, np.float32)
    elif options["sigma_schedule"] == "karras":
        line = np.append(sg.karras_sigmas(high, low, n, options["rho"]), 0.0).astype(np.float32)
    else:
        line = np.append(sg.exponential_sigmas(high, low, n), 0.0).astype(np.float32)
    exact = line.astype(np.float64)
    if steps.sigmas is None and options["final_sigmas_type"] == "sigma_min":
        exact[-1] = low
    levels = _exploding(exact)
    times = _float32(0.25 * np.log(exact[:-1]))
    return Schedule(times, levels[:-1], levels[1:], math.hypot(options["sigma_max"], 1), data=options["sigma_data"])


def repeated(options: Options, steps: Steps) -> Schedule:
    """Heun: `sigma_steps` with two calls per step, at its start and at its end."""
    once = sigma_steps(options, steps)
    calls = 2 * len(once.timesteps) - 1
    levels = np.stack([once.levels, once.targets], 1).reshape(-1, 2)[:calls]
    targets = np.repeat(once.targets, 2, 0)[:calls]
    ends = np.append(once.timesteps[1:], 0.0)
    if not np.array_equal(once.levels[1:], once.targets[:-1]):  # where noise is added between steps
        ends[:-1] = _float32(sg.timestep_from_sigma(once.targets[:-1, 1], np.log(once.table)))
    times = np.stack([once.timesteps, ends], 1).ravel()[:calls]
    return Schedule(times, levels, targets, once.initial)


def interleaved(options: Options, steps: Steps) -> Schedule:
    """DPM2: `sigma_steps` with two calls per step, at its start and at the geometric mean of its sigmas."""
    return _interleaved(options, steps, lambda _, s_next: s_next)


def interleaved_ancestral(options: Options, steps: Steps) -> Schedule:
    """DPM2 ancestral: `interleaved` with the geometric mean of sigma and `s_down`; noise is added after `s_down`."""
    eta = options["eta"]
    if eta == 1:
        return _interleaved(options, steps, lambda s, s_next: s_next**2 / s)
    return _interleaved(options, steps, lambda s, s_next: s_next * np.sqrt(1 - eta**2 * (1 - (s_next / s) ** 2)))


def _interleaved(options: Options, steps: Steps, towards: Callable[[Any, Any], Any]) -> Schedule:
    # diffusers rounds respaced timesteps only for Karras sigmas, and never those of the middle calls.
    table = sg.sigmas_from_alphas(alphas_cumprod(options))
    times, line = sigma_line(options, steps, table)
    if options["use_karras_sigmas"]:
        times = np.round(times)
    exact, count = line.astype(np.float64), len(line) - 1
    begins = _churned(options, exact)
    times = np.where(begins > exact[:-1], sg.timestep_from_sigma(begins, np.log(table)), times)
    middles = np.sqrt(begins[:-1] * towards(begins[:-1], exact[1:-1]))
    between = sg.timestep_from_sigma(middles, np.log(table))
    at = np.arange(count)
    levels = np.insert(middles, at, begins)[: 2 * count - 1]
    targets = np.insert(exact[1:-1], at, np.append(middles, 0.0))[: 2 * count - 1]
    all_times = np.insert(between, at, times)[: 2 * count - 1]
    initial = _initial(options, begins)
    return Schedule(_float32(all_times), _exploding(levels), _exploding(targets), initial)


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
    given = grid_line(options, steps, table)
    if given is not None:
        times, exact = given[0].astype(np.float64), given[1].astype(np.float64)
        if exact[-1] == 0 and options.get("final_sigmas_type", final) == "sigma_min":
            exact[-1] = min(exact[-2], table[0])
        levels = _preserving(exact)
        return Schedule(_float32(times), levels[:-1], levels[1:])
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
    levels = _preserving(exact)
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


def _preserving(sigmas: sg.Float64) -> sg.Float64:
    """Levels with alpha**2 + sigma**2 at 1. Shape (n, 2)."""
    alpha = 1 / np.hypot(sigmas, 1)
    return np.stack([alpha, sigmas * alpha], 1)


def _churned(options: Options, sigmas: sg.Float64) -> sg.Float64:
    """The sigmas (n,) that steps begin at: raised by `s_churn`, as in Karras et al. (2022), Algorithm 2."""
    begins = sigmas[:-1]
    if not options.get("s_churn"):
        return begins
    inside = (begins >= options["s_tmin"]) & (begins <= options["s_tmax"])
    return np.asarray(begins * (1 + inside * min(options["s_churn"] / len(begins), math.sqrt(2) - 1)), np.float64)


def _float32(times: sg.Floats) -> sg.Float64:
    """Rounded to float32, as in PyTorch; returned as float64."""
    return times.astype(np.float32).astype(np.float64)


def _initial(options: Options, sigmas: sg.Float64) -> float:
    """`init_noise_sigma` of the variance-exploding classes."""
    highest = float(sigmas.max())
    return float(np.hypot(highest, 1)) if options["timestep_spacing"] == "leading" else highest
