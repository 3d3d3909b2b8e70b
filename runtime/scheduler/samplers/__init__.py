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

from . import adams, multistep, onestep, singlestep, slopes, stochastic
from .basis import MODEL, NOISE, REGISTERS, STATE, Call, Calls, Walk

__all__ = ["MODEL", "NOISE", "REGISTERS", "SAMPLERS", "STATE", "Call", "Sampler", "Walk", "accepted"]

Names = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Sampler:
    """One row of `SAMPLERS`.

    Attributes:
        schedule: lays out the steps.
        solve: `(schedule, options, begin)`, yields one `Call` per model call from index `begin` on. Options include
            `eta`. A sampler that walks is given a `Walk` alone.
        names: short name -> options that it sets; a key ending in `?` is set only if the config lacks it.
        takes: which of `eta`, `timesteps`, `sigmas` the class accepts.
        order: model calls per step, as diffusers counts them.
        walks: whether the sampler lays out its own calls along the sigmas of `schedule`.
    """

    schedule: Callable[..., Schedule]
    solve: Callable[..., Calls]
    names: Names
    takes: frozenset[str] = field(default=frozenset())
    order: int = 1
    walks: bool = False


def accepted(options: Options) -> frozenset[str]:
    """Which of `eta`, `timesteps`, `sigmas` a sampler accepts with these options: DPM-Solver's SDE alone takes eta."""
    takes = SAMPLERS[options["_class_name"]].takes
    return takes if options.get("algorithm_type", "sde-dpmsolver++") == "sde-dpmsolver++" else takes - _ETA


_ETA, _TIMESTEPS, _SIGMAS = frozenset({"eta"}), frozenset({"timesteps"}), frozenset({"sigmas"})
_STEPS = _TIMESTEPS | _SIGMAS


def _walks(walk: Callable[[Walk], Calls], names: Names, takes: frozenset[str] = _STEPS) -> Sampler:
    return Sampler(schedules.sigma_steps, walk, names, takes, walks=True)


_UNCLIPPED = {"clip_sample?": False}
_SDE = {"algorithm_type": "sde-dpmsolver++", "solver_order": 2}

SAMPLERS: Mapping[str, Sampler] = MappingProxyType(
    {
        "DDIMScheduler": Sampler(
            schedules.strided,
            onestep.ddim,
            {"ddim": _UNCLIPPED, "ddim_cfg_pp": {**_UNCLIPPED, "cfg_pp": True}},
            _ETA,
        ),
        "DDPMScheduler": Sampler(schedules.consecutive, onestep.ddpm, {"ddpm": _UNCLIPPED}, _TIMESTEPS),
        "PNDMScheduler": Sampler(
            schedules.pseudo_multistep,
            multistep.pndm,
            {"pndm": {"skip_prk_steps?": True}, "plms": {"skip_prk_steps": True}},
        ),
        "LMSDiscreteScheduler": Sampler(schedules.sigma_steps, multistep.lms, {"lms": {}}, _SIGMAS),
        "EulerDiscreteScheduler": Sampler(
            schedules.sigma_steps,
            onestep.euler,
            {"euler": {}, "euler_cfg_pp": {"cfg_pp": True}},
            _STEPS,
        ),
        "EulerAncestralDiscreteScheduler": Sampler(
            schedules.sigma_steps,
            onestep.euler_ancestral,
            {"euler_a": {}, "euler_a_cfg_pp": {"cfg_pp": True}},
            _ETA | _SIGMAS,
        ),
        "HeunDiscreteScheduler": Sampler(schedules.repeated, singlestep.heun, {"heun": _UNCLIPPED}, _STEPS, order=2),
        "KDPM2DiscreteScheduler": Sampler(schedules.interleaved, singlestep.dpm2, {"dpm2": {}}, _SIGMAS, order=2),
        "KDPM2AncestralDiscreteScheduler": Sampler(
            schedules.interleaved_ancestral, singlestep.dpm2_ancestral, {"dpm2_a": {}}, _ETA | _SIGMAS, order=2
        ),
        "DPMSolverMultistepScheduler": Sampler(
            partial(schedules.log_snr_steps, ends_respaced=False),
            multistep.dpm_solver,
            {
                "dpm++_2m": {"algorithm_type": "dpmsolver++", "solver_order": 2},
                "dpm++_2m_sde": _SDE,
                "dpm++_2m_sde_heun": {**_SDE, "solver_type": "heun"},
                "dpm++_3m": {"algorithm_type": "dpmsolver++", "solver_order": 3},
            },
            _ETA | _STEPS,
        ),
        "DPMSolverSinglestepScheduler": Sampler(
            partial(schedules.log_snr_steps, rounds_cosine=True, ends_respaced=False),
            singlestep.dpm_solver_singlestep,
            {
                "dpm++_2s": {"algorithm_type": "dpmsolver++", "solver_order": 2},
                "dpm++_3s": {"algorithm_type": "dpmsolver++", "solver_order": 3},
            },
            _STEPS,
        ),
        "DEISMultistepScheduler": Sampler(
            partial(schedules.log_snr_steps, rounds_cosine=True, final="sigma_min"),
            multistep.deis,
            {"deis": {}},
            _SIGMAS,
        ),
        "UniPCMultistepScheduler": Sampler(
            partial(schedules.log_snr_steps, rounds_cosine=True),
            multistep.unipc,
            {"unipc": {}, "unipc_bh1": {"solver_type": "bh1"}, "unipc_bh2": {"solver_type": "bh2"}},
            _SIGMAS,
        ),
        "SASolverScheduler": Sampler(
            partial(schedules.log_snr_steps, rounds_cosine=True, final="sigma_min"),
            adams.sa_solver,
            {"sa_solver": {"algorithm_type": "data_prediction"}},
            _SIGMAS,
        ),
        "LCMScheduler": Sampler(schedules.distilled, onestep.lcm, {"lcm": _UNCLIPPED}, _TIMESTEPS),
        "TCDScheduler": Sampler(schedules.distilled_strategic, onestep.tcd, {"tcd": _UNCLIPPED}, _ETA | _TIMESTEPS),
        "EDMEulerScheduler": Sampler(schedules.preconditioned, onestep.euler, {}, _SIGMAS),
        "EDMDPMSolverMultistepScheduler": Sampler(schedules.preconditioned, multistep.dpm_solver, {}, _ETA | _SIGMAS),
        "FlowMatchEulerDiscreteScheduler": Sampler(schedules.flow, onestep.flow_euler, {"flow_euler": {}}),
        "DPMSolverSDEScheduler": _walks(stochastic.dpmpp_sde, {"dpm++_sde": {}}, _ETA | _STEPS),
        "DPMFastSampler": _walks(slopes.dpm_fast, {"dpm_fast": {}}, _ETA),
        "DPMSolver2SAncestralSampler": _walks(stochastic.dpmpp_2s_ancestral, {"dpm++_2s_a": {}}, _ETA | _STEPS),
        "DPMSolver3MSDESampler": _walks(stochastic.dpmpp_3m_sde, {"dpm++_3m_sde": {}}, _ETA | _STEPS),
        "ERSDESampler": _walks(stochastic.er_sde, {"er_sde": {}}),
        "GradientEstimationSampler": _walks(slopes.gradient_estimation, {"gradient_estimation": {}}),
        "HeunPPSampler": _walks(slopes.heunpp2, {"heunpp2": {}}),
        "IPNDMSampler": _walks(slopes.ipndm, {"ipndm": {"variable_steps": False}, "ipndm_v": {"variable_steps": True}}),
        "RESMultistepSampler": _walks(
            adams.res_multistep,
            {"res_multistep": {"eta": 0.0}, "res_multistep_a": {"eta": 1.0}},
            _ETA | _STEPS,
        ),
        "RestartSampler": _walks(slopes.restart, {"restart": {}}),
        "SASolverPECESampler": _walks(adams.sa_solver_pece, {"sa_solver_pece": {}}, _ETA | _STEPS),
        "SEEDS2Sampler": _walks(
            stochastic.seeds_2,
            {
                "seeds_2": {"eta": 1.0, "stage": 0.5, "solver_type": "phi_1"},
                "exp_heun_2_x0": {"eta": 0.0, "stage": 1.0, "solver_type": "phi_2"},
                "exp_heun_2_x0_sde": {"eta": 1.0, "stage": 1.0, "solver_type": "phi_2"},
            },
            _ETA | _STEPS,
        ),
        "SEEDS3Sampler": _walks(stochastic.seeds_3, {"seeds_3": {}}, _ETA | _STEPS),
    }
)
