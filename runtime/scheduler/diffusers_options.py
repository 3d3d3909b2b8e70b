"""Tables of the options of diffusers' schedulers (0.42): keys, defaults, choices, and what a plan cannot express.

Data only; `config.py` uses it.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

BASE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "prediction_type": "epsilon",
    "steps_offset": 0,
}
LATENT_BETAS = {"beta_start": 0.00085, "beta_end": 0.012}
_LEADING = {"timestep_spacing": "leading"}
_LINSPACE = {"timestep_spacing": "linspace"}
ZERO_SNR = {"rescale_betas_zero_snr": False}
_THRESHOLD = {"thresholding": False, "dynamic_thresholding_ratio": 0.995, "sample_max_value": 1.0}
# Only some constructors take sigma_min and sigma_max, but every class that respaces sigmas reads them from the config.
RESPACED = {
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "sigma_min": None,
    "sigma_max": None,
}
_FLOW = {
    "use_flow_sigmas": False,
    "flow_shift": 1.0,
    "use_dynamic_shifting": False,
    "time_shift_type": "exponential",
}
_DPM = {
    "solver_order": 2,
    "algorithm_type": "dpmsolver++",
    "solver_type": "midpoint",
    "lower_order_final": True,
    "final_sigmas_type": "zero",
    "lambda_min_clipped": -np.inf,
    "variance_type": None,
}
_CLIP = {"clip_sample": True, "clip_sample_range": 1.0}
_CONSISTENCY = {
    **LATENT_BETAS,
    "beta_schedule": "scaled_linear",
    "original_inference_steps": 50,
    "timestep_scaling": 10.0,
    "clip_sample": False,
    "clip_sample_range": 1.0,
    "set_alpha_to_one": True,
}

_EDM = {
    "sigma_min": 0.002,
    "sigma_max": 80.0,
    "sigma_data": 0.5,
    "sigma_schedule": "karras",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "rho": 7.0,
    "final_sigmas_type": "zero",
}
_FLOW_MATCHING = {
    "num_train_timesteps": 1000,
    "shift": 1.0,
    "use_dynamic_shifting": False,
    "base_shift": 0.5,
    "max_shift": 1.15,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
    "invert_sigmas": False,
    "shift_terminal": None,
    "time_shift_type": "exponential",
    "stochastic_sampling": False,
}

# Constructor defaults of the supported classes. A class reads exactly the keys listed here.
OPTIONS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "DDIMScheduler": BASE | _LEADING | ZERO_SNR | _THRESHOLD | _CLIP | {"set_alpha_to_one": True},
        "DDPMScheduler": BASE | _LEADING | ZERO_SNR | _THRESHOLD | _CLIP | {"variance_type": "fixed_small"},
        "PNDMScheduler": BASE | _LEADING | {"skip_prk_steps": False, "set_alpha_to_one": False},
        "LCMScheduler": BASE | _LEADING | ZERO_SNR | _THRESHOLD | _CONSISTENCY,
        "TCDScheduler": BASE | _LEADING | ZERO_SNR | _THRESHOLD | _CONSISTENCY,
        "LMSDiscreteScheduler": BASE | _LINSPACE | RESPACED,
        "EulerDiscreteScheduler": BASE
        | _LINSPACE
        | ZERO_SNR
        | RESPACED
        | {"interpolation_type": "linear", "timestep_type": "discrete", "final_sigmas_type": "zero"},
        "EulerAncestralDiscreteScheduler": BASE | _LINSPACE | ZERO_SNR,
        "HeunDiscreteScheduler": BASE | LATENT_BETAS | _LINSPACE | RESPACED | _CLIP | {"clip_sample": False},
        "KDPM2DiscreteScheduler": BASE | LATENT_BETAS | _LINSPACE | RESPACED,
        "KDPM2AncestralDiscreteScheduler": BASE | LATENT_BETAS | _LINSPACE | RESPACED,
        "DPMSolverMultistepScheduler": BASE
        | _LINSPACE
        | ZERO_SNR
        | _THRESHOLD
        | RESPACED
        | _FLOW
        | _DPM
        | {"euler_at_final": False, "use_lu_lambdas": False},
        "DPMSolverSinglestepScheduler": {k: v for k, v in BASE.items() if k != "steps_offset"}
        | _THRESHOLD
        | RESPACED
        | _FLOW
        | _DPM
        | {"lower_order_final": False},
        "DEISMultistepScheduler": BASE
        | _LINSPACE
        | _THRESHOLD
        | RESPACED
        | _FLOW
        | {"solver_order": 2, "algorithm_type": "deis", "solver_type": "logrho", "lower_order_final": True},
        "UniPCMultistepScheduler": BASE
        | _LINSPACE
        | ZERO_SNR
        | _THRESHOLD
        | RESPACED
        | _FLOW
        | {
            "solver_order": 2,
            "predict_x0": True,
            "solver_type": "bh2",
            "lower_order_final": True,
            "disable_corrector": [],
            "solver_p": None,
            "final_sigmas_type": "zero",
            "shift_terminal": None,
        },
        "DPMSolverSDEScheduler": BASE | LATENT_BETAS | _LINSPACE | RESPACED | {"noise_sampler_seed": None},
        "SASolverScheduler": BASE
        | _LINSPACE
        | _THRESHOLD
        | RESPACED
        | {
            "use_flow_sigmas": False,
            "flow_shift": 1.0,
            "predictor_order": 2,
            "corrector_order": 2,
            "tau_func": None,
            "algorithm_type": "data_prediction",
            "lower_order_final": True,
            "lambda_min_clipped": -np.inf,
            "variance_type": None,
        },
        "EDMEulerScheduler": _EDM,
        "EDMDPMSolverMultistepScheduler": _EDM
        | _THRESHOLD
        | {
            "solver_order": 2,
            "algorithm_type": "dpmsolver++",
            "solver_type": "midpoint",
            "lower_order_final": True,
            "euler_at_final": False,
        },
        "FlowMatchEulerDiscreteScheduler": RESPACED | _FLOW_MATCHING,
    }
)

CHOICES: Mapping[str, tuple[Any, ...]] = MappingProxyType(
    {
        "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"),
        "prediction_type": ("epsilon", "v_prediction", "sample"),
        "timestep_spacing": ("leading", "linspace", "trailing"),
        "timestep_type": ("discrete", "continuous"),
        "interpolation_type": ("linear", "log_linear"),
        "final_sigmas_type": ("zero", "sigma_min"),
        "time_shift_type": ("exponential", "linear"),
        "sigma_schedule": ("karras", "exponential"),
    }
)
# Numbers from the first to the last value; integers where these are. Tables are as long as `num_train_timesteps`.
MAX_TRAIN_TIMESTEPS = 100_000
RANGES: Mapping[str, tuple[float, float]] = MappingProxyType(
    {
        "num_train_timesteps": (2, MAX_TRAIN_TIMESTEPS),
        "beta_start": (0.0, 1.0),
        "beta_end": (0.0, 1.0),
        "steps_offset": (0, MAX_TRAIN_TIMESTEPS),
        "dynamic_thresholding_ratio": (0.0, 1.0),
        "sample_max_value": (0.0, 1e6),
        "sigma_min": (1e-9, 1e6),
        "sigma_max": (1e-9, 1e6),
        "flow_shift": (1e-3, 1e3),
        "noise_sampler_seed": (0, 2**63),
        "sigma_data": (1e-3, 1e3),
        "rho": (0.1, 100.0),
        "solver_order": (1, 3),
        "predictor_order": (1, 4),
        "corrector_order": (1, 4),
        "lambda_min_clipped": (-np.inf, 1e3),
        "clip_sample_range": (0.0, 1e6),
        "original_inference_steps": (1, MAX_TRAIN_TIMESTEPS),
        "timestep_scaling": (0.0, 1e6),
        "shift": (1e-3, 1e3),
        "base_shift": (-1e3, 1e3),
        "max_shift": (-1e3, 1e3),
        "base_image_seq_len": (0, 2**31),
        "max_image_seq_len": (0, 2**31),
        "shift_terminal": (0.0, 0.999),
    }
)
# Besides a number, these may be null.
OPTIONAL = frozenset({"sigma_min", "sigma_max", "shift_terminal", "noise_sampler_seed"})
_DPM_CHOICES = {
    "algorithm_type": ("dpmsolver++", "dpmsolver", "sde-dpmsolver++", "sde-dpmsolver"),
    "solver_type": ("midpoint", "heun"),
}
_BETA_SCHEDULES = CHOICES["beta_schedule"]
CLASS_CHOICES: Mapping[str, Mapping[str, tuple[Any, ...]]] = MappingProxyType(
    {
        "DDPMScheduler": {
            "beta_schedule": (*_BETA_SCHEDULES, "sigmoid", "laplace"),
            "variance_type": ("fixed_small", "fixed_small_log", "fixed_large"),
        },
        # diffusers combines past outputs before applying the prediction type, which is wrong for "sample".
        "PNDMScheduler": {"prediction_type": ("epsilon", "v_prediction")},
        "HeunDiscreteScheduler": {"beta_schedule": (*_BETA_SCHEDULES, "exp")},
        "DPMSolverMultistepScheduler": _DPM_CHOICES,
        "DPMSolverSinglestepScheduler": _DPM_CHOICES
        | {"algorithm_type": ("dpmsolver++", "dpmsolver", "sde-dpmsolver++")},
        "DEISMultistepScheduler": {"algorithm_type": ("deis",), "solver_type": ("logrho",)},
        "UniPCMultistepScheduler": {"solver_type": ("bh1", "bh2"), "solver_p": (None,)},
        "SASolverScheduler": {"algorithm_type": ("data_prediction", "noise_prediction"), "tau_func": (None,)},
        "EDMEulerScheduler": {"prediction_type": ("epsilon", "v_prediction")},
        "EDMDPMSolverMultistepScheduler": {
            "prediction_type": ("epsilon", "v_prediction"),
            "algorithm_type": ("dpmsolver++", "sde-dpmsolver++"),
            "solver_type": ("midpoint", "heun"),
        },
    }
)
_DPM_ALIASES = {
    "algorithm_type": {"deis": "dpmsolver++"},
    "solver_type": {"logrho": "midpoint", "bh1": "midpoint", "bh2": "midpoint"},
}
# Values of other classes that a class maps to its own.
ALIASES: Mapping[str, Mapping[str, Mapping[str, str]]] = MappingProxyType(
    {
        "DPMSolverMultistepScheduler": _DPM_ALIASES,
        "DPMSolverSinglestepScheduler": _DPM_ALIASES,
        "DEISMultistepScheduler": {
            "algorithm_type": {"dpmsolver": "deis", "dpmsolver++": "deis"},
            "solver_type": {"midpoint": "logrho", "heun": "logrho", "bh1": "logrho", "bh2": "logrho"},
        },
        "UniPCMultistepScheduler": {"solver_type": {"midpoint": "bh2", "heun": "bh2", "logrho": "bh2"}},
    }
)
_CLIPS = (
    "clips the predicted latents, which is not linear and cannot be compiled to a plan. It is meant for pixel-space "
    'models: set "{key}": false in the scheduler config, as Stable Diffusion checkpoints do'
)
_LEARNED = 'is for models that predict a variance, which Stable Diffusion does not: set "variance_type": null'
# (option, value) -> why it is rejected, and what to do instead.
REFUSED: Mapping[tuple[str, Any], str] = MappingProxyType(
    {
        ("clip_sample", True): _CLIPS.format(key="clip_sample"),
        ("thresholding", True): _CLIPS.format(key="thresholding"),
        ("variance_type", "learned"): _LEARNED,
        ("variance_type", "learned_range"): _LEARNED,
        (
            "variance_type",
            "fixed_large_log",
        ): 'is the square root of a negative number: set "variance_type": "fixed_large"',
        ("use_dynamic_shifting", True): "makes the schedule depend on the image size: set a constant shift instead",
        ("invert_sigmas", True): "is for models trained with noise and data swapped: set it to false",
        (
            "use_flow_sigmas",
            True,
        ): "is for flow matching models: set it to false, or use flow_euler",
    }
)

# Schedulers of diffusers that are not supported: why, and the nearest one that is.
UNPLANNED: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "IPNDMScheduler": ("is for models on the trigonometric schedule", "ipndm"),
        "CosineDPMSolverMultistepScheduler": ("is for models with EDM preconditioning", "dpm++_2m_sde"),
        "DDIMInverseScheduler": ("goes from image to noise", "ddim"),
        "DPMSolverMultistepInverseScheduler": ("goes from image to noise", "dpm++_2m"),
        "DDIMParallelScheduler": ("solves all steps at once by fixed-point iteration", "ddim"),
        "DDPMParallelScheduler": ("solves all steps at once by fixed-point iteration", "ddpm"),
        "CMStochasticIterativeScheduler": ("is for pixel-space consistency models", "lcm"),
        "FlowMatchHeunDiscreteScheduler": ("is not supported yet", "flow_euler"),
        "RePaintScheduler": ("jumps back in time for inpainting", "ddpm"),
    }
)
