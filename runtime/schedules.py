"""What a sampler walks along: timesteps, and the noise levels before and after every model call.

One function for each of the ways in which diffusers' classes lay out their steps. Knows nothing of samplers; options
come complete and checked from `scheduler_config`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from . import sigmas as sg
from .errors import SchedulerError

Options: TypeAlias = Mapping[str, Any]

RESPACINGS = ("use_karras_sigmas", "use_lu_lambdas", "use_exponential_sigmas")


@dataclass(frozen=True, slots=True)
class Steps:
    """What the caller asks for: a number of steps, and with it custom timesteps or sigmas (the final one included)."""

    count: int
    timesteps: Sequence[float] | None = None
    sigmas: Sequence[float] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Schedule:
    """The noise levels of M model calls, float64.

    A noise level is a pair (alpha, sigma): a sample there is `alpha * clean + sigma * noise`. The model's input is the
    sample divided by `hypot(alpha, sigma)`, so samplers may keep alpha at 1 (variance exploding, Karras et al. 2022)
    or `alpha**2 + sigma**2` at 1 (variance preserving).

    Attributes:
        timesteps: (M,) what the model is called with, fractional for some classes.
        levels: (M, 2) noise level of the sample that call i gets.
        targets: (M, 2) noise level that call i leads to. Mostly `levels[i + 1]`; DDIM aims elsewhere.
        initial: the first sample is `initial` times unit noise.
    """

    timesteps: sg.Float64
    levels: sg.Float64
    targets: sg.Float64
    initial: float

    @property
    def input_scales(self) -> sg.Float64:
        """(M,): model input = scale * sample."""
        return np.asarray(1 / np.hypot(self.levels[:, 0], self.levels[:, 1]), np.float64)


def strided_schedule(options: Options, steps: Steps) -> Schedule:
    """Integer timesteps; each call leads `num_train_timesteps // steps` timesteps on, whatever the spacing: DDIM.

    With a spacing whose stride differs (`trailing` where steps does not divide num_train_timesteps), a call's target
    is thus not quite the next call's level. diffusers computes so, and so do plans.
    """
    alphas = _alphas(options).astype(np.float64)
    train_steps = options["num_train_timesteps"]
    line = sg.spaced(options["timestep_spacing"], train_steps, steps.count, options["steps_offset"])
    current = np.round(line).astype(np.int64)
    if current[0] >= train_steps:
        raise SchedulerError(
            f"steps_offset={options['steps_offset']} with {steps.count} steps asks for timestep {current[0]}, but the "
            f"model was trained on 0 to {train_steps - 1}: lower steps_offset or the number of steps"
        )
    following = current - train_steps // steps.count
    final = 1.0 if options["set_alpha_to_one"] else alphas[0]
    target = np.where(following >= 0, alphas[following], final)
    return Schedule(current.astype(np.float64), _levels_from_alphas(alphas[current]), _levels_from_alphas(target), 1.0)


def sigma_schedule(options: Options, steps: Steps) -> Schedule:
    """Fractional timesteps, variance exploding, input divided by `sqrt(sigma**2 + 1)`: Euler and its relatives."""
    table = sg.sigmas_from_alphas(_alphas_above_zero(options))
    times: sg.Floats
    if steps.sigmas is not None:
        line = np.asarray(steps.sigmas, np.float32)
        times = sg.timestep_from_sigma(line[:-1], np.log(table))
    else:
        times, line = _sigma_line(options, steps, table)
    exact = line.astype(np.float64)
    if options.get("timestep_type") == "continuous" and options["prediction_type"] == "v_prediction":
        if steps.timesteps is not None:
            raise SchedulerError("timesteps cannot be set with timestep_type='continuous': pass sigmas")
        times = 0.25 * np.log(exact[:-1])
    levels = np.stack([np.ones_like(exact), exact], 1)
    highest = float(exact.max())
    initial = float(np.hypot(highest, 1)) if options["timestep_spacing"] == "leading" else highest
    return Schedule(times.astype(np.float32).astype(np.float64), levels[:-1], levels[1:], initial)


def log_snr_schedule(options: Options, steps: Steps) -> Schedule:
    """Integer timesteps above the last training timestep, variance preserving: DPM-Solver and its relatives."""
    alphas = _alphas_above_zero(options)
    table = sg.sigmas_from_alphas(alphas)
    line = _respaced(options, steps, table[::-1])
    if line is not None:
        times = sg.timestep_from_sigma(line, np.log(table))
        if not options["use_exponential_sigmas"] and options["beta_schedule"] != "squaredcos_cap_v2":
            times = np.round(times)
    else:
        times = np.asarray(steps.timesteps) if steps.timesteps is not None else _open_timesteps(options, steps, alphas)
        line = np.interp(times, np.arange(len(table)), table)
    exact = np.append(line, _final_sigma(options, table)).astype(np.float32).astype(np.float64)
    alpha = 1 / np.hypot(exact, 1)
    levels = np.stack([alpha, exact * alpha], 1)
    # The class keeps timesteps as integers, cut rather than rounded.
    return Schedule(np.trunc(times).astype(np.float64), levels[:-1], levels[1:], 1.0)


def _alphas(options: Options) -> sg.Float32:
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


def _alphas_above_zero(options: Options) -> sg.Float32:
    """`_alphas`; with zero terminal SNR the last one is 2**-24, so that every sigma is finite."""
    alphas = _alphas(options)
    if options.get("rescale_betas_zero_snr"):
        alphas[-1] = sg.TERMINAL_ALPHA
    return alphas


def _sigma_line(options: Options, steps: Steps, table: sg.Float32) -> tuple[sg.Floats, sg.Float32]:
    """Timesteps (M,) and sigmas (M + 1,) of `sigma_schedule` from a number of steps or custom timesteps."""
    train_steps = options["num_train_timesteps"]
    if steps.timesteps is not None:
        times: sg.Floats = np.asarray(steps.timesteps, np.float32)
    else:
        times = sg.spaced(options["timestep_spacing"], train_steps, steps.count, options["steps_offset"])
        times = times.astype(np.float32)
    sigmas: sg.Floats
    if options.get("interpolation_type", "linear") == "log_linear":
        # One sigma more than timesteps: the class then ends at the lowest training sigma and ignores the final one.
        sigmas = sg.log_linear_sigmas(float(table[-1]), float(table[0]), steps.count + 1)
    else:
        sigmas = np.interp(times, np.arange(len(table)), table)
    respaced = _respaced(options, steps, sigmas)
    if respaced is not None:
        sigmas, times = respaced, sg.timestep_from_sigma(respaced, np.log(table))
    ended = np.append(sigmas, _final_sigma(options, table)).astype(np.float32)
    return times, ended[: len(times) + 1]


def _open_timesteps(options: Options, steps: Steps, alphas: sg.Float32) -> sg.Float64:
    """Timesteps of `log_snr_schedule`; `lambda_min_clipped` drops the noisiest ones."""
    train_steps = options["num_train_timesteps"]
    log_snr = np.log(np.sqrt(alphas)) - np.log(np.sqrt(1 - alphas))
    clipped = options.get("lambda_min_clipped", -np.inf)
    stop = train_steps - int(np.searchsorted(log_snr[::-1], clipped))
    if stop < 1:
        raise SchedulerError(f"lambda_min_clipped={clipped} leaves no timestep: set it below {log_snr[0]:.4g}")
    return sg.spaced_open(options["timestep_spacing"], train_steps, stop, steps.count, options["steps_offset"])


def _respaced(options: Options, steps: Steps, sigmas: sg.Floats) -> sg.Float64 | None:
    """Karras, Lu or exponential sigmas between the ends of `sigmas`, where the options ask for them."""
    chosen = next((key for key in RESPACINGS if options.get(key)), None)
    if chosen is None:
        return None
    if steps.timesteps is not None:
        raise SchedulerError(f"timesteps cannot be set with {chosen}: drop one of the two")
    if chosen == "use_lu_lambdas":
        ends = np.log(np.asarray([sigmas[0], sigmas[-1]], np.float32))
        return sg.lu_sigmas(float(ends[0]), float(ends[1]), steps.count)
    highest, lowest = options.get("sigma_max"), options.get("sigma_min")
    highest = float(sigmas[0]) if highest is None else highest
    lowest = float(sigmas[-1]) if lowest is None else lowest
    respace = sg.karras_sigmas if chosen == "use_karras_sigmas" else sg.exponential_sigmas
    return respace(highest, lowest, steps.count)


def _final_sigma(options: Options, table: sg.Float32) -> np.float32:
    """The sigma at which the last step ends."""
    return np.float32(0) if options.get("final_sigmas_type", "zero") == "zero" else np.float32(table[0])


def _levels_from_alphas(alphas_cumprod: sg.Float64) -> sg.Float64:
    """(n, 2): alpha and sigma, variance preserving."""
    return np.stack([np.sqrt(alphas_cumprod), np.sqrt(1 - alphas_cumprod)], 1)
