"""Plans: a scheduler with its config and number of steps, compiled to a table of coefficients.

Every sampler used with Stable Diffusion is linear in state, model output and noise, so running a plan needs no
scheduler code: `next_state = coefficients[k] @ [state, model output, noise]`. Knows nothing about text, guidance, masks
or engines.
"""

import collections
import itertools
import json
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from latentrt.runtime.errors import SchedulerError
from latentrt.runtime.scheduler.samplers import REGISTERS, SAMPLERS, accepted

from .config import checked_options
from .schedules import Options, Steps
from .sigmas import Float32
from .solving import PART, plan_arrays


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """The table that the denoising loop executes: M model calls, R = 7 registers. Arrays are copied and read-only.

    The state is `(R, ...)` float32. Row 0 is the next model input, already scaled; after the last call it holds the
    finished latents. Row R-1 is the predicted clean latents. The other rows hold past quantities: predictions, slopes,
    and the sample at the start of the step. Known latents are blended into row 0 only.

    Attributes:
        timesteps: (M,) float32, the model's timestep input.
        coefficients: (M, R, R+2) float32; the columns are the registers of the state, the model output, the noise.
        initial: (R, 2) float32, the first state from [unit noise, clean latents].
        draws: (M,) bool, the calls that consume a draw of unit noise.
        noise_levels: (M+1, 2) float32, (alpha, sigma) of row 0 before each call and at the end: row 0 is
            `alpha * clean + sigma * noise`.
        blend: (M, 2) float32, weights of [clean, noise] for the known latents in row 0 after each call, as in
            diffusers' inpainting with an ordinary UNet; clean latents after the last call.
        guidance: (M, 2) float32, the guidance scale of call k is `guidance[k] @ [1, scale]`: (0, 1) but for CFG++,
            where row R-1 is guided as strongly as the whole call, and so more than the latents at the end.

    Raises: SchedulerError: wrong shape, or a value is not finite.
    """

    timesteps: Float32
    coefficients: Float32
    initial: Float32
    draws: NDArray[np.bool_]
    noise_levels: Float32
    blend: Float32
    guidance: Float32 = None  # type: ignore[assignment]  # (0, 1) for all calls

    def __post_init__(self) -> None:
        calls, rows = len(self.timesteps), REGISTERS
        if self.guidance is None:
            object.__setattr__(self, "guidance", np.tile(np.float32([0, 1]), (calls, 1)))
        shapes = {
            "timesteps": (calls,),
            "coefficients": (calls, rows, rows + 2),
            "initial": (rows, 2),
            "draws": (calls,),
            "noise_levels": (calls + 1, 2),
            "blend": (calls, 2),
            "guidance": (calls, 2),
        }
        for name, shape in shapes.items():
            array = np.array(getattr(self, name), np.bool_ if name == "draws" else np.float32)
            if array.shape != shape or not calls:
                raise SchedulerError(f"{name} of a plan has shape {array.shape}; expected {shape}")
            if not np.isfinite(array).all():
                raise SchedulerError(f"{name} of a plan contains NaN or infinity")
            array.flags.writeable = False
            object.__setattr__(self, name, array)

    def __len__(self) -> int:
        """M, the number of model calls; some samplers need more than one per step."""
        return len(self.timesteps)

    @staticmethod
    def from_config(
        config: Mapping[str, Any],
        num_inference_steps: int | None = None,
        *,
        strength: float | None = None,
        eta: float | None = None,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
        denoising_start: float | None = None,
        denoising_end: float | None = None,
    ) -> "Plan":
        """Compile a diffusers scheduler config. Plans are cached.

        Args:
            config: diffusers' `scheduler_config` with `_class_name`, see `resolve`.
            num_inference_steps: 1 to `num_train_timesteps`; None with custom timesteps or sigmas, which set it.
            strength: in (0, 1], for image-to-image: skip the first steps and start from noised clean latents. None
                starts from pure noise.
            eta: noise of the stochastic samplers, 0 (none) to 1. The default is the config's, else 0 for DDIM and TCD,
                as in diffusers' pipelines, and 1 for the others.
            timesteps: custom timesteps, strictly decreasing, for classes that accept them.
            sigmas: custom sigmas, strictly decreasing, including the final one, usually 0.
            denoising_start: in [0, 1), continue from the latents of a plan with `denoising_end`; pass them as clean
                latents.
            denoising_end: in (0, 1], stop after this fraction of the training timesteps; row 0 then holds unfinished
                latents in the scale of the diffusers class.

        Raises: SchedulerError: an invalid config or argument.
        """
        options = checked_options(config)
        _refuse_untaken(options, eta=eta or None, timesteps=timesteps, sigmas=sigmas)
        if eta is not None and not 0 <= eta <= 1:
            raise SchedulerError(f"eta={eta!r}: expected a number from 0 (deterministic) to 1 (as much noise as DDPM)")
        steps = _steps(options, num_inference_steps, timesteps, sigmas)
        _check_part(strength, denoising_start, denoising_end)
        part = dict(zip(PART, (strength, denoising_start, denoising_end), strict=True))
        noise = float(options.get("eta", 0) if eta is None else eta)
        request = options | part | {"eta": noise, "steps": [steps.count, steps.timesteps, steps.sigmas]}
        return _compiled(json.dumps(request, sort_keys=True))

    def states(
        self,
        model: Callable[[NDArray[Any], np.float32], NDArray[Any]],
        noise: NDArray[Any],
        clean: NDArray[Any] | None = None,
        draw: Callable[[], NDArray[Any]] | None = None,
    ) -> Iterator[NDArray[Any]]:
        """Run the plan in numpy and yield the state (R, ...) after each call. Arguments as for `replay`."""
        if clean is None and self.initial[:, 1].any():
            raise SchedulerError("this plan starts from clean latents: pass clean=")
        if draw is None and self.draws.any():
            raise SchedulerError("this plan draws noise between calls: pass draw=, for example a generator's randn")
        dtype = np.result_type(noise, np.float32)
        zeros = np.zeros(noise.shape, dtype)
        begin = np.stack([noise, zeros if clean is None else clean]).astype(dtype)
        state = np.tensordot(self.initial.astype(dtype), begin, 1)
        for table, timestep, draws in zip(self.coefficients, self.timesteps, self.draws, strict=True):
            output = np.asarray(model(state[0], timestep), dtype)
            fresh = np.asarray(draw(), dtype) if draws and draw is not None else zeros
            state = np.tensordot(table.astype(dtype), np.concatenate([state, output[None], fresh[None]]), 1)
            yield state

    def replay(
        self,
        model: Callable[[NDArray[Any], np.float32], NDArray[Any]],
        noise: NDArray[Any],
        clean: NDArray[Any] | None = None,
        draw: Callable[[], NDArray[Any]] | None = None,
    ) -> NDArray[Any]:
        """Run the plan in numpy: the reference for every backend.

        Args:
            model: `model(x, t)` takes the scaled sample, shaped like `noise`, and the timestep; returns its prediction.
            noise: unit normal noise of any shape. Float64 noise computes in float64, anything else in float32.
            clean: clean latents, for plans with strength or denoising_start.
            draw: returns the next draw of unit normal noise; needed if any of `draws` is set.

        Returns: the latents in row 0 after the last call, shaped like `noise`.

        Raises: SchedulerError: clean or draw is missing.
        """
        last = collections.deque(self.states(model, noise, clean, draw), maxlen=1)
        return np.asarray(last[0][0])

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """The plan's arrays by name, for safetensors; the inverse of `from_arrays`."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Self:
        """The plan of `to_arrays`. Raises `SchedulerError` if an array is missing, unknown or malformed."""
        names = {field.name for field in fields(cls)}
        if {*arrays, "guidance"} != names:  # plans of version 1 may lack it
            raise SchedulerError(f"expected the arrays {sorted(names)} of a plan, got {sorted(arrays)}")
        return cls(**arrays)


@lru_cache(maxsize=256)
def _compiled(request: str) -> Plan:
    """The plan for the canonical JSON of checked options, steps and part."""
    options = json.loads(request)
    return Plan(**plan_arrays(options, Steps(*options["steps"])))


def _check_part(strength: float | None, denoising_start: float | None, denoising_end: float | None) -> None:
    if strength is not None and not 0 < strength <= 1:
        raise SchedulerError(f"strength={strength!r}: expected > 0 (keep the image) and <= 1 (redraw it)")
    if strength is not None and denoising_start is not None:
        raise SchedulerError("strength and denoising_start both set the first step: pass only one of them")
    if denoising_start is not None and not 0 <= denoising_start < 1:
        raise SchedulerError(f"denoising_start={denoising_start!r}: expected >= 0 and < 1")
    if denoising_end is not None and not (denoising_start or 0) < denoising_end <= 1:
        raise SchedulerError(f"denoising_end={denoising_end!r}: expected > denoising_start and <= 1")


def _refuse_untaken(options: Options, **given: object) -> None:
    taken = accepted(options)
    for name, value in given.items():
        if value is not None and name not in taken:
            takers = ", ".join(other for other, row in SAMPLERS.items() if name in row.takes)
            kind = options.get("algorithm_type")
            which = options["_class_name"] + (f" with algorithm_type={kind!r}" if kind else "")
            raise SchedulerError(f"{which} does not accept {name}; these do: {takers}")


def _steps(options: Options, count: object, timesteps: Sequence[float] | None, sigmas: Sequence[float] | None) -> Steps:
    """Validate the number of steps, or the custom timesteps or sigmas that set it."""
    highest = options["num_train_timesteps"]
    if timesteps is not None and sigmas is not None:
        raise SchedulerError("timesteps and sigmas both set the steps: pass only one of them")
    if timesteps is None and sigmas is None:
        if isinstance(count, bool) or not hasattr(count, "__index__") or not 1 <= operator.index(count) <= highest:
            raise SchedulerError(f"num_inference_steps={count!r}: expected an integer from 1 to {highest}")
        return Steps(operator.index(count))
    if timesteps is not None:
        values = _falling("timesteps", timesteps)
        if not values or not (values[-1] >= 0 and values[0] < highest):
            raise SchedulerError(f"timesteps={list(values)}: expected at least one, all from 0 to {highest - 1}")
        steps = Steps(len(values), timesteps=values)
    else:
        values = _falling("sigmas", sigmas or ())
        if len(values) < 2 or values[-1] < 0:
            raise SchedulerError(f"sigmas={list(values)}: expected at least two, the last one (usually 0) is the end")
        steps = Steps(len(values) - 1, sigmas=values)
    if count is not None and count != steps.count:
        raise SchedulerError(f"num_inference_steps={count!r}, but there are {steps.count} custom steps: leave it out")
    return steps


def _falling(name: str, given: Sequence[float]) -> tuple[float, ...]:
    values = tuple(float(value) for value in given)
    if not all(a > b for a, b in itertools.pairwise(values)):
        raise SchedulerError(f"{name}={list(values)}: expected strictly decreasing values")
    return values
