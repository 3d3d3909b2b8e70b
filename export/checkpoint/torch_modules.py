"""Build a component's module from its config and weights, strictly: missing weights are errors, never initialized.

Knows the classes of diffusers and transformers; knows no files.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from latentrt.runtime.errors import CheckpointError

# Attention parameters of VAEs: names before diffusers 0.14 -> names since.
_OLD_ATTENTION = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}

# Part -> its class in diffusers.
_CLASSES = {
    "unet": "UNet2DConditionModel",
    "vae": "AutoencoderKL",
    "preview_vae": "AutoencoderKL",
    "controlnet": "ControlNetModel",
    "controlnet-union": "ControlNetUnionModel",
    "t2i-adapter": "T2IAdapter",
}


def bare_name(part: str, name: str) -> str:
    """A parameter's name, independent of the versions of the libraries.

    transformers 5.6 removed a level of CLIP's text model, diffusers 0.14 renamed attention.
    """
    if part.startswith("text_encoder"):
        return name.removeprefix("text_model.")
    if part == "vae":
        for old, new in _OLD_ATTENTION.items():
            name = name.replace(old, new)
    return name


def empty_module(part: str, config: Mapping[str, Any]) -> torch.nn.Module:
    """The component's module on the meta device; raises `CheckpointError` for an invalid config."""
    from accelerate import init_empty_weights

    try:
        with init_empty_weights(), _silent("diffusers"):
            return _new_module(part, dict(config))
    except Exception as error:  # the libraries raise exceptions of any type
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"the config of the {part} is invalid: {reason}") from error


def module_from_weights(
    part: str,
    config: Mapping[str, Any],
    weights: Iterable[tuple[str, torch.Tensor]],
    dtype: torch.dtype,
    *,
    where: str,
) -> torch.nn.Module:
    """The component's module in eval mode with all of its weights in `dtype`.

    Args:
        weights: names and tensors, converted one at a time; tensors that the module does not have are ignored.
        where: origin of the weights, for error messages.

    Raises `CheckpointError` for missing weights and for wrong shapes and dtypes.
    """
    module = empty_module(part, config)
    own = {bare_name(part, name): (name, tensor.shape) for name, tensor in module.state_dict().items()}
    found: dict[str, torch.Tensor] = {}
    mismatched = []
    for raw, tensor in weights:
        name = bare_name(part, raw)
        if name not in own:
            continue
        if not tensor.is_floating_point():
            raise CheckpointError(f"{where} has {raw} as {tensor.dtype}, which is not a floating-point type")
        full, shape = own[name]
        if tensor.shape != shape:
            mismatched.append(f"{name} with shape {tuple(tensor.shape)} instead of {tuple(shape)}")
        found[full] = tensor.to(dtype)
    missing = [name for name, (full, _) in own.items() if full not in found]
    for problem, names in (("missing", missing), ("mismatched", mismatched)):
        if names:
            raise CheckpointError(
                f"{where} does not have the weights that its config requires: {len(names)} {problem}, "
                f"such as {', '.join(sorted(names)[:3])}"
            )
    module.load_state_dict(found, assign=True)
    return module.eval()


def _new_module(part: str, config: dict[str, Any]) -> torch.nn.Module:
    if part.startswith("text_encoder"):
        from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

        cls = CLIPTextModel if part == "text_encoder" else CLIPTextModelWithProjection
        text_model: torch.nn.Module = cls(CLIPTextConfig(**config, attn_implementation="sdpa"))
        return text_model
    if part == "image-encoder":
        from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

        vision_model: torch.nn.Module = CLIPVisionModelWithProjection(
            CLIPVisionConfig(**config, attn_implementation="sdpa")
        )
        return vision_model
    import diffusers

    tiny = part in ("vae", "preview_vae") and config.get("_class_name") == "AutoencoderTiny"
    cls = diffusers.AutoencoderTiny if tiny else getattr(diffusers, _CLASSES[part])
    diffusers_module: torch.nn.Module = cls.from_config(config)
    if part == "preview_vae":
        diffusers_module.encoder = torch.nn.Identity()  # only the decoder is used, and only its weights are there
    return diffusers_module


@contextmanager
def _silent(name: str) -> Iterator[None]:
    """Suppress warnings; diffusers logs one for every unknown entry of a config."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
