"""Tables of the options that diffusers does not have: of its classes, and of the samplers of web UIs.

Data only; `config.py` uses it. Classes whose names end in `Sampler` are latentrt's own; the others are diffusers'.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from .diffusers_options import (
    BASE,
    CHOICES,
    CLASS_CHOICES,
    LATENT_BETAS,
    OPTIONAL,
    OPTIONS,
    RANGES,
    RESPACED,
    ZERO_SNR,
)
from .sigma_grids import GRIDS

_GRID = {
    "schedule_type": None,
    "schedule_rho": None,
    "schedule_alpha": 0.6,
    "schedule_beta": 0.6,
    "discard_next_to_last": False,
}
_CHURN = {"s_churn": 0.0, "s_tmin": 0.0, "s_tmax": np.inf, "s_noise": 1.0}
_NOISE = {"eta": 1.0, "s_noise": 1.0}
_PLUS_PLUS = {"cfg_pp": False}

# What latentrt adds to diffusers' classes. `eta` is the default of the call's option.
_ADDED: Mapping[str, Mapping[str, Any]] = {
    "DDIMScheduler": {"eta": 0.0, **_PLUS_PLUS},
    "TCDScheduler": {"eta": 0.0},
    "LMSDiscreteScheduler": _GRID,
    "EulerDiscreteScheduler": _GRID | _CHURN | _PLUS_PLUS,
    "EulerAncestralDiscreteScheduler": _GRID | _NOISE | _PLUS_PLUS | {"sigma_min": None, "sigma_max": None},
    "HeunDiscreteScheduler": _GRID | _CHURN,
    "KDPM2DiscreteScheduler": _GRID | _CHURN,
    "KDPM2AncestralDiscreteScheduler": _GRID | _NOISE,
    "DPMSolverMultistepScheduler": _GRID | _NOISE,
    "DPMSolverSinglestepScheduler": _GRID,
    "DEISMultistepScheduler": _GRID,
    "UniPCMultistepScheduler": _GRID,
    "DPMSolverSDEScheduler": _GRID | _NOISE,
    "SASolverScheduler": _GRID,
    "EDMDPMSolverMultistepScheduler": _NOISE,
}

_BETAS = BASE | LATENT_BETAS | ZERO_SNR | {"beta_schedule": "scaled_linear", "timestep_spacing": "linspace"}
_SIGMAS = _BETAS | RESPACED | _GRID
_OWN: Mapping[str, Mapping[str, Any]] = {
    "DPMFastSampler": _BETAS | _NOISE | {"eta": 0.0},
    "DPMSolver2SAncestralSampler": _SIGMAS | _NOISE,
    "DPMSolver3MSDESampler": _SIGMAS | _NOISE,
    "ERSDESampler": _SIGMAS | {"s_noise": 1.0},
    "GradientEstimationSampler": _SIGMAS,
    "HeunPPSampler": _SIGMAS,
    "IPNDMSampler": _SIGMAS | {"variable_steps": False},
    "RESMultistepSampler": _SIGMAS | _NOISE | {"eta": 0.0},
    "RestartSampler": _SIGMAS | {"s_noise": 1.0},
    "SASolverPECESampler": _SIGMAS | _NOISE | {"predictor_order": 3, "corrector_order": 4},
    "SEEDS2Sampler": _SIGMAS | _NOISE | {"stage": 0.5, "solver_type": "phi_1"},
    "SEEDS3Sampler": _SIGMAS | _NOISE,
}

# Every option of every class that has a plan, with its default; and what values they take.
ALL_OPTIONS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {name: {**options, **_ADDED.get(name, {})} for name, options in OPTIONS.items()} | dict(_OWN)
)
KNOWN_KEYS = frozenset().union(*ALL_OPTIONS.values())
ALL_CHOICES: Mapping[str, tuple[Any, ...]] = MappingProxyType({**CHOICES, "schedule_type": (None, *GRIDS)})
ALL_CLASS_CHOICES: Mapping[str, Mapping[str, tuple[Any, ...]]] = MappingProxyType(
    {**CLASS_CHOICES, "SEEDS2Sampler": {"solver_type": ("phi_1", "phi_2")}}
)
ALL_RANGES: Mapping[str, tuple[float, float]] = MappingProxyType(
    {
        **RANGES,
        "eta": (0.0, 1.0),
        "s_noise": (0.0, 100.0),
        "s_churn": (0.0, 1e6),
        "s_tmin": (0.0, 1e6),
        "s_tmax": (0.0, np.inf),
        "schedule_rho": (0.1, 100.0),
        "schedule_alpha": (0.1, 10.0),
        "schedule_beta": (0.1, 10.0),
        "stage": (0.05, 1.0),
    }
)
ALL_OPTIONAL = OPTIONAL | {"schedule_rho"}
