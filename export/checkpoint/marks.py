"""What a single file says of its noise schedule beside its weights: marker tensors, and ModelSpec's metadata.

Trainers, merging tools and ComfyUI write the markers; their names and meanings are those that ComfyUI reads. Knows
configs; knows no files and no modules.
"""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from latentrt.runtime.errors import CheckpointError
from latentrt.runtime.scheduler import class_defaults

Config = dict[str, Any]
logger = logging.getLogger(__name__)

_PREDICTIONS = {"v": "v_prediction", "v_prediction": "v_prediction", "epsilon": "epsilon"}
_METADATA = ("modelspec.prediction_type", "modelspec.predict_key")
_HIGHEST, _LOWEST = "edm_vpred.sigma_max", "edm_vpred.sigma_min"
_MEAN, _STD = "edm_mean", "edm_std"
# The public configs of models with EDM preconditioning: Playground 2.5, and CosXL as diffusers' documentation runs it.
_PLAYGROUND_SCALING = 0.5
_PLAYGROUND: Config = {
    "_class_name": "EDMDPMSolverMultistepScheduler",
    "algorithm_type": "dpmsolver++",
    "final_sigmas_type": "zero",
    "lower_order_final": True,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "rho": 7.0,
    "sigma_data": 0.5,
    "sigma_max": 80.0,
    "sigma_min": 0.002,
    "solver_order": 2,
    "solver_type": "midpoint",
}
_COSXL: Config = {
    "_class_name": "EDMEulerScheduler",
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "sigma_data": 1.0,
    "sigma_max": 120.0,
    "sigma_min": 0.002,
    "sigma_schedule": "exponential",
}


@dataclass(frozen=True, slots=True, eq=False)
class Marks:
    """What is marked; empty for a file without marks.

    Attributes:
        prediction_type: what the UNet predicts.
        zero_snr: whether the last training timestep has no signal; counts for v-prediction alone.
        scheduler: the whole scheduler config of a model with EDM preconditioning; empty for others.
        vae: values for the VAE's config.
    """

    prediction_type: str | None = None
    zero_snr: bool = False
    scheduler: Config = field(default_factory=dict)
    vae: Config = field(default_factory=dict)


def marks_of(weights: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> Marks:
    """The marks of a file; raises `CheckpointError` for values that cannot be, and for half of a pair.

    Args:
        weights: the file's tensors; only those of marks are read.
        metadata: the safetensors file's metadata.
    """
    for name, other in ((_MEAN, _STD), (_STD, _MEAN), (_LOWEST, _HIGHEST)):
        if name in weights and other not in weights:
            raise CheckpointError(f"the file has {name} without {other}: add it, or remove both")
    if _MEAN in weights:
        mean, std = (_numbers(weights, name, count=4) for name in (_MEAN, _STD))
        if min(std) <= 0:
            raise CheckpointError(f"the file has {_STD} = {std}; expected numbers above 0")
        of_vae = {"latents_mean": mean, "latents_std": std, "scaling_factor": _PLAYGROUND_SCALING}
        return Marks(scheduler=_PLAYGROUND, vae=of_vae)
    if _HIGHEST in weights:
        (highest,) = _numbers(weights, _HIGHEST, count=1)
        (lowest,) = _numbers(weights, _LOWEST, count=1) if _LOWEST in weights else (_COSXL["sigma_min"],)
        if not 0 < lowest < highest:
            raise CheckpointError(
                f"the file has {_LOWEST} = {lowest} and {_HIGHEST} = {highest}; expected 0 < min < max"
            )
        return Marks(scheduler={**_COSXL, "sigma_max": highest, "sigma_min": lowest})
    noted = next((_PREDICTIONS[metadata[key]] for key in _METADATA if metadata.get(key) in _PREDICTIONS), None)
    return Marks("v_prediction" if "v_pred" in weights else noted, "ztsnr" in weights)


def with_marks(
    configs: Mapping[str, Config], index: Config, marks: Marks, prediction_type: str | None
) -> dict[str, Config]:
    """The configs as the marks say; the VAE's and the scheduler's may change.

    Args:
        configs: component, or "scheduler" -> its config.
        index: model_index.json, whose class says whether the model is SDXL, the only family with EDM models.
        prediction_type: the user's choice, which goes before marks and configs.

    Raises `CheckpointError` for an EDM model of another family.
    """
    scheduler = dict(marks.scheduler or configs["scheduler"])
    if marks.scheduler and not index["_class_name"].startswith("StableDiffusionXL"):
        names = f"{_MEAN} and {_STD}" if marks.vae else _HIGHEST
        raise CheckpointError(f"the file has {names}, the marks of an EDM model, which are supported for SDXL alone")
    changes: Config = {}
    predicts = prediction_type or marks.prediction_type
    if predicts is not None and predicts != scheduler.get("prediction_type", "epsilon"):
        changes["prediction_type"] = predicts
    velocity = (scheduler | changes).get("prediction_type") == "v_prediction"
    if marks.zero_snr and not velocity:
        logger.warning("the mark ztsnr is left out: it is for --prediction-type v_prediction")
    if marks.zero_snr and velocity:
        changes |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        if "rescale_betas_zero_snr" not in class_defaults(scheduler.get("_class_name")):
            changes |= {"_class_name": "DDIMScheduler", "clip_sample": False}
    scheduler |= changes
    if isinstance(filled := scheduler.get("_use_default_values"), list):
        scheduler["_use_default_values"] = [key for key in filled if key not in changes]
    return {**configs, "scheduler": scheduler, "vae": {**configs["vae"], **marks.vae}}


def _numbers(weights: Mapping[str, torch.Tensor], name: str, *, count: int) -> list[float]:
    """The values of a marker tensor, which must be finite."""
    tensor = weights[name]
    if (
        tensor.numel() != count
        or not tensor.is_floating_point()
        or not all(map(math.isfinite, tensor.flatten().tolist()))
    ):
        wanted = "a number" if count == 1 else f"{count} numbers"
        raise CheckpointError(
            f"the file has {name} of shape {tuple(tensor.shape)} and {tensor.dtype}; expected {wanted}"
        )
    return [float(value) for value in tensor.flatten().tolist()]
