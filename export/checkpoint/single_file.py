"""Single files in Stable Diffusion's original ("LDM") layout: detect the family, and rename weights for the modules.

Works offline on names and shapes; diffusers does the renaming. Knows no files and no modules.
"""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch

from latentrt.runtime.errors import CheckpointError

from .marks import marks_of, with_marks
from .public_configs import PUBLIC_CONFIGS, Config
from .weight_files import RenamedTensors

Weights = Mapping[str, torch.Tensor]

VAE_PREFIX = "first_stage_model."
_UNET_INPUT = "model.diffusion_model.input_blocks.0.0.weight"
# Prefix of tensor names -> what a file with them is, for unsupported files. The first match is reported.
_OTHERS = {
    "model.diffusion_model.joint_blocks.": "Stable Diffusion 3",
    "joint_blocks.": "Stable Diffusion 3",
    "model.diffusion_model.double_blocks.": "Flux",
    "double_blocks.": "Flux",
    "control_model.": "a ControlNet",
    "lora_unet_": "a LoRA; merge it into a checkpoint with --lora",
    "first_stage_model.": "a VAE; pass it with --vae",
    "encoder.down.": "a VAE; pass it with --vae",
    "down_blocks.": "one component in the diffusers format; pass the folder above it",
}
_REFINER = "conditioner.embedders.0.model."
# Prefixes of the text encoders, in the layouts of transformers and of OpenCLIP; a refiner's first one is the second.
_CLIP = {
    "text_encoder": ("cond_stage_model.transformer.", "conditioner.embedders.0.transformer."),
    "text_encoder_2": (),
}
_OPENCLIP = {
    "text_encoder": ("cond_stage_model.model.",),
    "text_encoder_2": ("conditioner.embedders.1.model.", _REFINER),
}


def configs_of_file(weights: Weights, metadata: Mapping[str, str], prediction_type: str | None) -> dict[str, Config]:
    """The configs of a file's family, detected by tensor names and shapes; raises `CheckpointError` for other models.

    Args:
        weights: the file's tensors; only those of marks are read, and one of the UNet's.
        metadata: the safetensors file's metadata.
        prediction_type: the user's choice, which weights do not determine. None takes the file's metadata (ModelSpec)
            or marker tensor, else the most common one: v_prediction for Stable Diffusion 2, else epsilon.
    """
    family = _family(weights)
    marks = marks_of(weights, metadata)
    predicts = prediction_type or marks.prediction_type
    if family == "sd2":
        family = "sd2-base" if predicts == "epsilon" else "sd2-v"
    configs = dict(PUBLIC_CONFIGS[family])
    channels = weights[_UNET_INPUT].shape[1]
    configs["unet"] = {**configs["unet"], "in_channels": channels}
    if channels == 9:  # latents, mask, latents of the masked image
        pipeline = configs["index"]["_class_name"].replace("Img2Img", "").replace("Pipeline", "InpaintPipeline")
        configs["index"] = {**configs["index"], "_class_name": pipeline}
    return with_marks(configs, configs["index"], marks, prediction_type)


def weights_of_part(part: str, weights: Weights, config: Mapping[str, Any]) -> Weights:
    """A component's weights, renamed for its module."""
    from diffusers.loaders import single_file_utils as diffusers

    if part == "unet":
        # It only renames tensors, so it is called with names as values, and no tensor is read. For moving averages of a
        # training it would advise an option of a script of its own.
        names = {name: name for name in weights if not name.startswith("model_ema.")}
        return RenamedTensors(weights, diffusers.convert_ldm_unet_checkpoint(names, dict(config)))
    if part == "vae":
        return vae_weights(weights, config)
    if any(name.startswith(_CLIP[part]) for name in weights):
        return dict(diffusers.convert_ldm_clip_checkpoint(weights))
    module = SimpleNamespace(config=SimpleNamespace(hidden_size=config["hidden_size"]))
    prefix = next(prefix for prefix in _OPENCLIP[part] if any(name.startswith(prefix) for name in weights))
    return dict(diffusers.convert_open_clip_checkpoint(module, weights, prefix=prefix))


def vae_weights(weights: Weights, config: Mapping[str, Any]) -> Weights:
    """The VAE's weights from a checkpoint or a separate VAE file, in the original or the diffusers layout."""
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    if (name := config.get("_class_name", "AutoencoderKL")) != "AutoencoderKL":
        raise CheckpointError(
            f"the file's VAE is no {name}, which the config names: give a folder with config.json and weights of a VAE"
        )
    if any(name.startswith("encoder.down_blocks.") for name in weights):
        return weights
    return dict(convert_ldm_vae_checkpoint(weights, dict(config)))


def _family(weights: Weights) -> str:
    if _UNET_INPUT in weights:
        if any(name.startswith(_OPENCLIP["text_encoder_2"][0]) for name in weights):
            return "sdxl"
        if any(name.startswith(_REFINER) for name in weights):
            return "sdxl-refiner"
        if any(name.startswith(_OPENCLIP["text_encoder"]) for name in weights):
            return "sd2"
        if any(name.startswith(_CLIP["text_encoder"][0]) for name in weights):
            return "sd1"
    other = next((what for mark, what in _OTHERS.items() if any(name.startswith(mark) for name in weights)), None)
    if other is None and _UNET_INPUT in weights:
        other = "a UNet without a text encoder"
    raise CheckpointError(
        f"the file is {other or 'of an unknown kind'}. Single files of Stable Diffusion 1, 2 and XL contain tensors "
        "named model.diffusion_model.*, first_stage_model.*, and cond_stage_model.* or conditioner.*"
    )
