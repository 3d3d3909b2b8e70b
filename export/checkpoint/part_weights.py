"""The gate that every component's weights pass, wherever they come from. It looks at names, shapes and dtypes only.

Every tensor of a checkpoint is used, known to be harmless, or refused by name: a tensor that is dropped without a word
may be half of a quantized weight.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from latentrt.runtime.errors import CheckpointError

from .torch_modules import bare_name, empty_module

_SCHEDULE = "the noise schedule, which the scheduler's config has"
# Names of tensors that change no image, and why.
_HARMLESS = {
    r"(.+\.)?position_ids": "the numbers 0 to 76, which the module makes",
    r"(.+\.)?attn_mask": "the causal mask, which the module makes",
    r"(.+\.)?logit_scale": "for the training of CLIP",
    r"(vision_model|visual_projection)\..+": "the image side of CLIP",
    r"(.+\.)?text_projection(\.weight)?": "a projection that only SDXL uses, and there it is a weight",
    r"cond_stage_model\.model\.transformer\.resblocks\.23\..+": "Stable Diffusion 2 does not use the last layer",
    r"model_ema\..+": "the moving average of a training; diffusers, too, takes the weights beside it",
    r"(first_stage_model\.)?(loss|model_ema)\..+": "for the training of the VAE",
    r"embedding_manager\..+": "the state of a textual inversion's training",
    r"(model\.)?(log_|sqrt_)?(one_minus_|recip_|recipm1_)?(alphas|betas)\w*": _SCHEDULE,
    r"posterior_\w+|lvlb_weights|logvar|denoiser\.sigmas": _SCHEDULE,
    r"v_pred|ztsnr|edm_(mean|std)|edm_vpred\.sigma_(min|max)": "marks, which are read",
    r"global_step|epoch|dummy": "notes of a training",
}
_PATTERN = re.compile("|".join(_HARMLESS))


class Traced(torch.Tensor):
    """A tensor on the meta device that knows the name of the stored tensor it comes from, also after slicing."""

    origin: str

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_function__(func, types, args, kwargs or {})  # type: ignore[no-untyped-call]
        if isinstance(result, cls) and args and isinstance(args[0], cls):
            result.origin = args[0].origin
        return result


def traced(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors' headers: shapes and dtypes without content."""
    header = getattr(tensors, "header", None)
    result: dict[str, torch.Tensor] = {}
    for name in tensors:
        made = (tensors[name].to("meta") if header is None else header(name)).as_subclass(Traced)
        made.origin = name
        result[name] = made
    return result


def check_weights(where: str, part: str, config: Mapping[str, Any], headers: Mapping[str, torch.Tensor]) -> set[str]:
    """Check a component's tensors against its config; returns the names of the stored tensors that are used.

    Args:
        where: origin of the weights, for error messages.
        headers: renamed `traced` tensors.

    Raises `CheckpointError` for missing and unused tensors, wrong shapes and dtypes.
    """
    own = {bare_name(part, name): tensor.shape for name, tensor in empty_module(part, config).state_dict().items()}
    used, unused, found, mismatched = set(), [], set(), []
    for raw, tensor in headers.items():
        name, origin = bare_name(part, raw), getattr(tensor, "origin", raw)
        if name not in own:
            if not is_harmless(raw) and not is_harmless(origin):
                unused.append(origin)
            continue
        if not tensor.is_floating_point():
            raise CheckpointError(f"{where} has {raw} as {tensor.dtype}, which is not a floating-point type")
        if tensor.shape != own[name]:
            mismatched.append(f"{name} with shape {tuple(tensor.shape)} instead of {tuple(own[name])}")
        used.add(origin)
        found.add(name)
    for problem, names in (("missing", sorted(set(own) - found)), ("mismatched", sorted(mismatched))):
        if names:
            raise CheckpointError(
                f"{where} does not have the weights that its config requires: {len(names)} {problem}, "
                f"such as {', '.join(names[:3])}"
            )
    refuse_unused(where, unused)
    return used


def refuse_unused(where: str, names: Iterable[str]) -> None:
    """Raise `CheckpointError` if there are tensors that nothing uses and that are not known to be harmless."""
    unknown = sorted(name for name in names if not is_harmless(name))
    if unknown:
        raise CheckpointError(
            f"{where} has {len(unknown)} tensors that nothing would use, such as {', '.join(unknown[:3])}. They may "
            "belong to another kind of model or of quantization. Remove them from the file if they change nothing"
        )


def is_harmless(name: str) -> bool:
    """Whether a tensor of that name changes no image."""
    return _PATTERN.fullmatch(name) is not None
