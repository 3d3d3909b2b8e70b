"""From options to sequences of timesteps and sigmas, as in diffusers' `set_timesteps`.

Knows nothing about samplers; expects options that `config` has completed and checked.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from latentrt.runtime.errors import SchedulerError

from . import sigmas as sg
from .sigma_grids import sigma_grid

Options: TypeAlias = Mapping[str, Any]

RESPACINGS = ("use_karras_sigmas", "use_lu_lambdas", "use_exponential_sigmas", "use_beta_sigmas")


@dataclass(frozen=True, slots=True)
class Steps:
    """The requested number of steps, with custom timesteps or sigmas (including the final sigma) if given."""

    count: int
    timesteps: Sequence[float] | None = None
    sigmas: Sequence[float] | None = None


class LevelTable:
    """Noise levels (alpha, sigma) of integer training timesteps, variance preserving."""

    def __init__(self, options: Options, final: float | None) -> None:
        """`final` is `alphas_cumprod` below timestep 0; None uses that of timestep 0."""
        alphas = alphas_cumprod(options).astype(np.float64)
        end = alphas[0] if final is None else final
        bar = np.concatenate([alphas, [np.nan, end]])
        self._levels = np.stack([np.sqrt(bar), np.sqrt(1 - bar)], 1)

    def __getitem__(self, timesteps: sg.Floats) -> sg.Float64:
        """Levels (n, 2) of timesteps (n,): the final level for negative ones, NaN above the training timesteps."""
        at = np.asarray(timesteps).astype(np.int64)
        return self._levels[np.where(at < 0, len(self._levels) - 1, np.minimum(at, len(self._levels) - 2))]


def whole_timesteps(options: Options, steps: Steps) -> sg.Float64:
    """Integer timesteps of the spacing, or the custom ones. Shape (n,) float64."""
    if steps.timesteps is not None:
        return np.asarray(steps.timesteps, np.float64).astype(np.int64).astype(np.float64)
    train_steps, offset = options["num_train_timesteps"], options["steps_offset"]
    times = np.round(sg.spaced(options["timestep_spacing"], train_steps, steps.count, offset))
    if times[0] >= train_steps:
        raise SchedulerError(
            f"steps_offset={offset} with {steps.count} steps results in timestep {times[0]:.0f}, but the "
            f"model was trained on 0 to {train_steps - 1}: lower steps_offset or the number of steps"
        )
    return times


def distilled_timesteps(options: Options, steps: Steps) -> sg.Float64:
    """Integer timesteps of consistency models, or the custom ones. Shape (n,) float64."""
    if steps.timesteps is not None:
        return whole_timesteps(options, steps)
    original, train_steps = options["original_inference_steps"], options["num_train_timesteps"]
    if not steps.count <= original <= train_steps:
        raise SchedulerError(
            f"num_inference_steps={steps.count} with original_inference_steps={original}: expected num_inference_steps "
            f"<= original_inference_steps <= {train_steps}. Lower num_inference_steps; 4 to 8 are usual"
        )
    line = (np.arange(original, 0, -1) * (train_steps // original) - 1).astype(np.float64)
    chosen = np.floor(np.linspace(0, original, steps.count, endpoint=False)).astype(np.int64)
    return np.asarray(line[chosen], np.float64)


def alphas_cumprod(options: Options) -> sg.Float32:
    """`alphas_cumprod` of the training schedule. Shape (num_train_timesteps,) float32."""
    if options["trained_betas"] is not None:
        betas = np.asarray(options["trained_betas"], np.float32)
    else:
        betas = sg.betas_from_schedule(
            options["beta_schedule"], options["beta_start"], options["beta_end"], options["num_train_timesteps"]
        )
    if options.get("rescale_betas_zero_snr"):
        betas = sg.zero_terminal_snr(betas)
    return sg.cumulative_alphas(betas)


def alphas_above_zero(options: Options) -> sg.Float32:
    """`alphas_cumprod`; with zero terminal SNR the last value is 2**-24, so that every sigma is finite."""
    alphas = alphas_cumprod(options)
    if options.get("rescale_betas_zero_snr"):
        alphas[-1] = sg.TERMINAL_ALPHA
    return alphas


def sigma_line(options: Options, steps: Steps, table: sg.Float32) -> tuple[sg.Floats, sg.Float32]:
    """Timesteps (M,) and sigmas (M + 1,) for `sigma_steps`, from a number of steps, custom timesteps or sigmas.

    With `log_linear` interpolation there is one sigma more.
    """
    given = grid_line(options, steps, table)
    if given is not None:
        return given
    train_steps = options["num_train_timesteps"]
    if steps.timesteps is not None:
        times: sg.Floats = np.asarray(steps.timesteps, np.float32)
    else:
        times = sg.spaced(options["timestep_spacing"], train_steps, steps.count, options["steps_offset"])
        times = times.astype(np.float32)
    sigmas: sg.Floats
    if options.get("interpolation_type", "linear") == "log_linear":
        # As in diffusers, the last step ends at the lowest training sigma, or is one more with continuous timesteps.
        sigmas = sg.log_linear_sigmas(float(table[-1]), float(table[0]), steps.count + 1)
    else:
        sigmas = np.interp(times, np.arange(len(table)), table)
    replaced = respaced(options, steps, sigmas)
    if replaced is not None:
        sigmas, times = replaced, sg.timestep_from_sigma(replaced, np.log(table))
    ended = np.append(sigmas, final_sigma(options, table)).astype(np.float32)
    return times, ended


def grid_line(options: Options, steps: Steps, table: sg.Float32) -> tuple[sg.Float32, sg.Float32] | None:
    """Fractional timesteps (M,) and sigmas (M + 1,) where sigmas are custom or of a `schedule_type`; else None."""
    if steps.sigmas is not None:
        line = np.asarray(steps.sigmas, np.float32)
    elif options.get("schedule_type") is not None:
        if steps.timesteps is not None:
            raise SchedulerError(f"custom timesteps are not possible with schedule_type={options['schedule_type']!r}")
        line = sigma_grid(options, steps.count, table).astype(np.float32)
    else:
        return None
    return sg.timestep_from_sigma(line[:-1], np.log(table)).astype(np.float32), line


def open_timesteps(options: Options, steps: Steps, alphas: sg.Float32) -> sg.Float64:
    """Timesteps for `log_snr_steps`; `lambda_min_clipped` drops the noisiest ones."""
    train_steps = options["num_train_timesteps"]
    log_snr = np.log(np.sqrt(alphas)) - np.log(np.sqrt(1 - alphas))
    clipped = options.get("lambda_min_clipped", -np.inf)
    stop = train_steps - int(np.searchsorted(log_snr[::-1], clipped))
    if stop < 1:
        raise SchedulerError(f"lambda_min_clipped={clipped} leaves no timestep: set it below {log_snr[0]:.4g}")
    spacing, offset = options.get("timestep_spacing", "linspace"), options.get("steps_offset", 0)
    return sg.spaced_open(spacing, train_steps, stop, steps.count, offset)


def respaced(options: Options, steps: Steps, sigmas: sg.Floats) -> sg.Float64 | None:
    """Karras, Lu, exponential or beta sigmas between the ends of `sigmas`; None if the options select none of them."""
    chosen = next((key for key in RESPACINGS if options.get(key)), None)
    if chosen is None:
        return None
    if steps.timesteps is not None:
        raise SchedulerError(f"custom timesteps are not possible with {chosen}: drop one of them")
    if chosen == "use_lu_lambdas":
        ends = np.log(np.asarray([sigmas[0], sigmas[-1]], np.float32))
        return sg.lu_sigmas(float(ends[0]), float(ends[1]), steps.count)
    highest, lowest = options.get("sigma_max"), options.get("sigma_min")
    # Only LMS ignores both for Karras sigmas.
    unread = options["_class_name"] == "LMSDiscreteScheduler" and chosen == "use_karras_sigmas"
    highest = float(sigmas[0]) if highest is None or unread else highest
    lowest = float(sigmas[-1]) if lowest is None or unread else lowest
    respace = {
        "use_karras_sigmas": sg.karras_sigmas,
        "use_exponential_sigmas": sg.exponential_sigmas,
        "use_beta_sigmas": sg.beta_sigmas,
    }
    return respace[chosen](highest, lowest, steps.count)


def final_sigma(options: Options, table: sg.Float32) -> np.float32:
    """The sigma after the last step."""
    return np.float32(0) if options.get("final_sigmas_type", "zero") == "zero" else np.float32(table[0])
