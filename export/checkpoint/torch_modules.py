"""Build the module of a component from its config and its weights, strictly.

A weight that is missing is an error, never a random number. Knows the classes of diffusers and transformers; knows no
files.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from latentrt.runtime.errors import CheckpointError

# Names of attention in the VAEs of older diffusers.
_OLD_ATTENTION = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}


def bare_name(part: str, name: str) -> str:
    """A parameter's name as all versions of the libraries can agree on it.

    transformers 5.6 dropped a level of CLIP's text model, diffusers 0.14 renamed attention.
    """
    if part.startswith("text_encoder"):
        return name.removeprefix("text_model.")
    if part == "vae":
        for old, new in _OLD_ATTENTION.items():
            name = name.replace(old, new)
    return name


def empty_module(part: str, config: Mapping[str, Any]) -> torch.nn.Module:
    """The component's module, its parameters without memory; raises `CheckpointError` for a config that makes none."""
    from accelerate import init_empty_weights

    try:
        with init_empty_weights(), _silent("diffusers"):
            return _new_module(part, dict(config))
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, RuntimeError) as error:
        raise CheckpointError(f"the config of the {part} makes no module: {error}") from error


def module_from_weights(
    part: str,
    config: Mapping[str, Any],
    weights: Iterable[tuple[str, torch.Tensor]],
    dtype: torch.dtype,
    *,
    where: str,
) -> torch.nn.Module:
    """The component's module in eval mode, with all of its weights, in `dtype`.

    Args:
        weights: names and tensors, converted one after the other; what the module does not have is left out.
        where: they come from, for errors.
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
            raise CheckpointError(f"{where} holds {raw} as {tensor.dtype}, which is no floating-point type")
        full, shape = own[name]
        if tensor.shape != shape:
            mismatched.append(f"{name} {tuple(tensor.shape)} instead of {tuple(shape)}")
        found[full] = tensor.to(dtype)
    missing = [name for name, (full, _) in own.items() if full not in found]
    for problem, names in (("missing", missing), ("mismatched", mismatched)):
        if names:
            raise CheckpointError(
                f"{where} does not hold the weights that its config asks for: {len(names)} {problem}, "
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
    from diffusers import AutoencoderKL, UNet2DConditionModel

    cls = {"unet": UNet2DConditionModel, "vae": AutoencoderKL}[part]
    diffusers_module: torch.nn.Module = cls.from_config(config)
    return diffusers_module


@contextmanager
def _silent(name: str) -> Iterator[None]:
    """diffusers warns of every entry of a config that it does not know."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
