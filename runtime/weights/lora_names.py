"""Maps tensor names in LoRA files to parameters of the checkpoint. Knows names only."""

import re
from collections.abc import Iterable

from latentrt.runtime.errors import nearest_names

# Suffixes of tensor names in the formats of kohya and of all versions of diffusers and PEFT.
_ENDINGS = {
    ".lora_down.weight": "down",
    ".lora_up.weight": "up",
    ".lora_mid.weight": "mid",
    ".alpha": "alpha",
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora_A.default.weight": "down",
    ".lora_B.default.weight": "up",
    ".lora.down.weight": "down",
    ".lora.up.weight": "up",
    ".lora_linear_layer.down.weight": "down",
    ".lora_linear_layer.up.weight": "up",
    "_lora.down.weight": "down",
    "_lora.up.weight": "up",
}
_KOHYA = {
    "unet": ("lora_unet_",),
    "text_encoder": ("lora_te_text_model_", "lora_te1_text_model_"),
    "text_encoder_2": ("lora_te2_text_model_",),
}
# Modules of a UNet's residual blocks in the original code; kohya's files for Stable Diffusion XL use these names.
_ORIGINAL = {
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_BLOCK = re.compile(r"(down|mid|up)_blocks?\.(?:(\d+)\.)?(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")


class LoraNames:
    """Finds the parameter of the checkpoint for a module name in a LoRA file."""

    def __init__(self, parameters: Iterable[str]) -> None:
        self._known: dict[str, str] = {}
        parameters = list(parameters)
        first_block = re.compile(r"unet\.down_blocks\.0\.resnets\.\d+\.conv1\.weight")
        layers = sum(first_block.fullmatch(parameter) is not None for parameter in parameters)
        for parameter in parameters:
            part, _, rest = parameter.removesuffix(".weight").partition(".")
            if parameter.endswith(".weight") and part in _KOHYA:
                self._known[f"{part}.{rest}"] = parameter
                for prefix in _KOHYA[part]:
                    for name in (rest, *(_original_names(rest, layers) if part == "unet" else ())):
                        self._known[prefix + name.replace(".", "_")] = parameter

    def parameter(self, module: str) -> str | None:
        module = module.removeprefix("base_model.model.").replace(".text_model.", ".").replace(".processor.", ".")
        candidates = (module, f"{module}.0", f"unet.{module}", f"unet.{module}.0")  # .0: old `to_out`
        return next((self._known[name] for name in candidates if name in self._known), None)

    def nearest(self, module: str) -> list[str]:
        return nearest_names(module, self._known, 2)


def _original_names(module: str, layers: int) -> list[str]:
    """Possible names of a module of the UNet's blocks in the original code; `layers` is residual blocks per block."""
    match = _BLOCK.fullmatch(module)
    if match is None:
        return []
    side, block, kind, layer, rest = match[1], int(match[2] or 0), match[3], int(match[4]), match[5]
    at = block * (layers + 1) + layer
    if kind == "downsamplers":
        return [f"input_blocks.{(block + 1) * (layers + 1)}.0.op"]
    if kind == "upsamplers":  # it comes after an attention if the block has one
        return [f"output_blocks.{at + layers}.{place}.conv" for place in (1, 2)]
    if side == "mid":
        return [f"middle_block.{2 * layer if kind == 'resnets' else 1}.{_ORIGINAL.get(rest, rest)}"]
    place = f"input_blocks.{1 + at}" if side == "down" else f"output_blocks.{at}"
    return [f"{place}.{0 if kind == 'resnets' else 1}.{_ORIGINAL.get(rest, rest)}"]


def split_name(name: str) -> tuple[str, str]:
    """Module and part ("down", "up", "mid", "alpha") of a tensor's name; the part is "" for other tensors."""
    for ending, part in _ENDINGS.items():
        if name.endswith(ending):
            return name.removesuffix(ending), part
    return name, ""
