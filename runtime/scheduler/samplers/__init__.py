"""The samplers, each written once in its textbook form on basis vectors, and the table of their names.

A sampler walks along a `Schedule` and yields the next sample of every model call. It knows nothing about timestep
spacings, scaling of the model's input, or how plans are run. A new one is a function and a row in `SAMPLERS`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any

from latentrt.runtime.scheduler import schedules
from latentrt.runtime.scheduler.schedules import Options, Schedule

from . import multistep, onestep, singlestep
from .basis import MODEL, NOISE, REGISTERS, STATE, Call, Calls

__all__ = ["MODEL", "NOISE", "REGISTERS", "SAMPLERS", "STATE", "Call", "Sampler"]

Names = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Sampler:
    """One row of `SAMPLERS`.

    Attributes:
        schedule: lays out the steps.
        solve: `(schedule, options, begin)`, yields one `Call` per model call from index `begin` on. Options include
            `eta`.
        names: short name -> options that it sets; a key ending in `?` is set only if the config lacks it.
        takes: which of `eta`, `timesteps`, `sigmas` the class accepts.
        order: model calls per step, as diffusers counts them.
    """

    schedule: Callable[..., Schedule]
    solve: Callable[[Schedule, Options, int], Calls]
    names: Names
    takes: frozenset[str] = field(default=frozenset())
    order: int = 1


_ETA, _TIMESTEPS = frozenset({"eta"}), frozenset({"timesteps"})
_UNCLIPPED = {"clip_sample?": False}

SAMPLERS: Mapping[str, Sampler] = MappingProxyType(
    {
        "DDIMScheduler": Sampler(schedules.strided, onestep.ddim, {"ddim": _UNCLIPPED}, _ETA),
        "DDPMScheduler": Sampler(schedules.consecutive, onestep.ddpm, {"ddpm": _UNCLIPPED}, _TIMESTEPS),
        "PNDMScheduler": Sampler(schedules.pseudo_multistep, multistep.pndm, {"pndm": {"skip_prk_steps?": True}}),
        "LMSDiscreteScheduler": Sampler(schedules.sigma_steps, multistep.lms, {"lms": {}}),
        "EulerDiscreteScheduler": Sampler(
            schedules.sigma_steps, onestep.euler, {"euler": {}}, frozenset({"timesteps", "sigmas"})
        ),
        "EulerAncestralDiscreteScheduler": Sampler(schedules.sigma_steps, onestep.euler_ancestral, {"euler_a": {}}),
        "HeunDiscreteScheduler": Sampler(
            schedules.repeated, singlestep.heun, {"heun": _UNCLIPPED}, _TIMESTEPS, order=2
        ),
        "KDPM2DiscreteScheduler": Sampler(schedules.interleaved, singlestep.dpm2, {"dpm2": {}}, order=2),
        "KDPM2AncestralDiscreteScheduler": Sampler(
            schedules.interleaved_ancestral, singlestep.dpm2_ancestral, {"dpm2_a": {}}, order=2
        ),
        "DPMSolverMultistepScheduler": Sampler(
            partial(schedules.log_snr_steps, ends_respaced=False),
            multistep.dpm_solver,
            {
                "dpm++_2m": {"algorithm_type": "dpmsolver++", "solver_order": 2},
                "dpm++_2m_sde": {"algorithm_type": "sde-dpmsolver++", "solver_order": 2},
                "dpm++_3m": {"algorithm_type": "dpmsolver++", "solver_order": 3},
            },
            _TIMESTEPS,
        ),
        "DPMSolverSinglestepScheduler": Sampler(
            partial(schedules.log_snr_steps, rounds_cosine=True, ends_respaced=False),
            singlestep.dpm_solver_singlestep,
            {
                "dpm++_2s": {"algorithm_type": "dpmsolver++", "solver_order": 2},
                "dpm++_3s": {"algorithm_type": "dpmsolver++", "solver_order": 3},
            },
            _TIMESTEPS,
        ),
        "DEISMultistepScheduler": Sampler(
            partial(schedules.log_snr_steps, rounds_cosine=True, final="sigma_min"), multistep.deis, {"deis": {}}
        ),
        "UniPCMultistepScheduler": Sampler(
            partial(schedules.log_snr_steps, rounds_cosine=True), multistep.unipc, {"unipc": {}}
        ),
        "LCMScheduler": Sampler(schedules.distilled, onestep.lcm, {"lcm": _UNCLIPPED}, _TIMESTEPS),
        "TCDScheduler": Sampler(schedules.distilled_strategic, onestep.tcd, {"tcd": _UNCLIPPED}, _ETA | _TIMESTEPS),
        "FlowMatchEulerDiscreteScheduler": Sampler(schedules.flow, onestep.flow_euler, {"flow_euler": {}}),
    }
)
