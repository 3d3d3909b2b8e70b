"""Tell the kind of a ControlNet or adapter from its config or its tensors, and rename those of original files.

Public configs are those of lllyasviel/sd-controlnet-canny, thibaud/controlnet-sd21 and diffusers/controlnet-canny-sdxl.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch

from latentrt.export.checkpoint.weight_files import RenamedTensors
from latentrt.runtime.errors import CheckpointError

Config = dict[str, Any]
Tensors = Mapping[str, torch.Tensor]

_KINDS = {
    "ControlNetModel": "controlnet",
    "ControlNetUnionModel": "controlnet-union",
    "T2IAdapter": "t2i-adapter",
    "IPAdapter": "ip-adapter",
    "CLIPVisionModelWithProjection": "image-encoder",
    "CLIPModel": "image-encoder",
}
# Prefix of tensor names -> what a file with them is, for unsupported files.
_REFUSED = {
    "lllite_": "a ControlNet-LLLite, which changes the UNet's own layers; use a ControlNet",
    "lora_controlnet": "a Control-LoRA, which is completed by the UNet; use a ControlNet",
    "multi_controlnet": "several ControlNets; export each by itself",
    "lora_unet_": "a LoRA; merge it into a checkpoint with latentrt export --lora",
    "model.diffusion_model.": "a checkpoint; export it with latentrt export",
    "transformer_blocks.": "a ControlNet for another kind of model; Stable Diffusion 1, 2 and XL have UNets",
}
_LDM = ("control_model.", "input_hint_block.", "zero_convs.")
# Width of the text -> the config of the family's public ControlNet.
_PUBLIC: Mapping[int, Config] = {
    768: {"cross_attention_dim": 768, "attention_head_dim": 8},
    1024: {"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True},
    2048: {
        "cross_attention_dim": 2048,
        "attention_head_dim": [5, 10, 20],
        "use_linear_projection": True,
        "block_out_channels": [320, 640, 1280],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}
_ATTENTION = "attn2.to_k.weight"


def kind_of_config(name: str, config: Mapping[str, Any]) -> str:
    """The kind of what a config describes; raises `CheckpointError` for others."""
    named = config.get("_class_name") or (config.get("architectures") or [None])[0]
    if named in _KINDS:
        return _KINDS[named]
    if named == "MultiAdapter":
        raise CheckpointError(f"{name} holds several T2I-Adapters: export each by itself")
    raise CheckpointError(f"{name} is a {named or 'model without a class'}: expected one of {', '.join(_KINDS)}")


def config_of_file(name: str, tensors: Tensors) -> Config:
    """The config of a single file of the public shapes; raises `CheckpointError` for other files."""
    if any(key.startswith("ip_adapter.") for key in tensors):
        return {"_class_name": "IPAdapter"}
    if any(key.startswith(("body.0.", "adapter.body.0.")) for key in tensors):
        return _t2i_config(tensors)
    names = [key.removeprefix("control_model.") for key in tensors]
    if not any(key.startswith(("input_hint_block.", "controlnet_cond_embedding.")) for key in names):
        raise CheckpointError(
            f"{name} is {_what_it_is(tensors)}. Single files of ControlNets have tensors named control_model.* or "
            "controlnet_cond_embedding.*"
        )
    for prefix in ("lllite_", "lora_controlnet"):
        if any(prefix in key for key in tensors):
            raise CheckpointError(f"{name} is {_REFUSED[prefix]}")
    width = next((tensors[key].shape[1] for key in tensors if key.endswith(_ATTENTION)), None)
    if width is None or width not in _PUBLIC:
        widths = ", ".join(map(str, _PUBLIC))
        raise CheckpointError(
            f"{name} reads texts of width {width}: expected {widths}, or pass its config.json with --config"
        )
    config: Config = {"_class_name": "ControlNetModel", **_PUBLIC[width]}
    if "task_embedding" in names:
        kinds = tensors[next(key for key in tensors if key.endswith("task_embedding"))].shape[0]
        config |= {"_class_name": "ControlNetUnionModel", "num_control_type": kinds}
    elif width == 2048:
        config["transformer_layers_per_block"] = [1, *(_depth(names, level) for level in (1, 2))]
    first = ("input_hint_block.0.weight", "controlnet_cond_embedding.conv_in.weight")
    hint = next(tensors[key].shape[1] for key in tensors if key.endswith(first))
    return config | {"conditioning_channels": hint}


def _t2i_config(tensors: Tensors) -> Config:
    """The config of a T2I-Adapter: full for Stable Diffusion 1, full for XL, or light."""
    renamed = _t2i_names(tensors)
    light = any(".out_conv." in key for key in renamed)
    first = tensors[renamed["adapter.body.0.in_conv.weight" if light else "adapter.conv_in.weight"]]
    levels = 1 + max(int(key.split(".")[2]) for key in renamed if key.startswith("adapter.body."))
    channels = [
        int(
            tensors[
                renamed[f"adapter.body.{i}.out_conv.weight" if light else f"adapter.body.{i}.resnets.0.block1.weight"]
            ].shape[0]
        )
        for i in range(levels)
    ]
    is_xl = not light and "adapter.body.3.in_conv.weight" not in renamed and levels == 4
    kind, factor = ("full_adapter_xl", 16) if is_xl else ("light_adapter" if light else "full_adapter", 8)
    pixels = int(first.shape[1])
    if pixels % factor**2:
        raise CheckpointError(
            f"the T2I-Adapter reads {pixels} channels: expected a multiple of {factor**2}, or pass --config"
        )
    return {
        "_class_name": "T2IAdapter",
        "adapter_type": kind,
        "channels": channels,
        "in_channels": pixels // factor**2,
        "downscale_factor": factor,
        "num_res_blocks": sum(
            re.fullmatch(r"adapter\.body\.0\.resnets\.\d+\.block1\.weight", key) is not None for key in renamed
        ),
    }


def _t2i_names(tensors: Tensors) -> dict[str, str]:
    """Names of diffusers -> those of the file, which numbers the blocks of all levels one after the other."""
    if any(key.startswith("adapter.") for key in tensors):
        return {key: key for key in tensors}
    light = any(".out_conv." in key for key in tensors)
    found = {}
    for key in tensors:
        name = f"adapter.{key}"
        if light:
            name = re.sub(r"^adapter\.body\.(\d+)\.body\.(\d+)\.", r"adapter.body.\1.resnets.\2.", name)
        elif match := re.match(r"body\.(\d+)\.(in_conv\.)?(.*)", key):
            level, block = divmod(int(match[1]), 2)
            name = f"adapter.body.{level}." + ("in_conv." if match[2] else f"resnets.{block}.") + match[3]
        found[name] = key
    return found


def _depth(names: list[str], level: int) -> int:
    """Transformer blocks in each attention of a level; small ControlNets for SDXL have fewer than the UNet."""
    original = f"input_blocks.{3 * level + 1}.1.transformer_blocks."
    prefixes = (f"down_blocks.{level}.attentions.0.transformer_blocks.", original)
    found = [key.split("transformer_blocks.")[1] for key in names if key.startswith(prefixes)]
    return max((int(key.split(".")[0]) + 1 for key in found), default=0)


def _what_it_is(tensors: Tensors) -> str:
    for prefix, what in _REFUSED.items():
        if any(key.startswith(prefix) for key in tensors):
            return what
    return "of an unknown kind"


def renamed_weights(kind: str, tensors: Tensors, config: Mapping[str, Any]) -> Tensors:
    """The weights under the names of the module."""
    if kind == "t2i-adapter":
        return RenamedTensors(tensors, _t2i_names(tensors))
    if kind != "controlnet" or not any(key.startswith(_LDM) for key in tensors):
        return tensors
    from diffusers.loaders.single_file_utils import convert_controlnet_checkpoint

    # It only renames tensors, so it is called with names as values, and no tensor is read.
    names = {key: key for key in tensors}
    made = convert_controlnet_checkpoint(names, {"layers_per_block": 2, **config})
    return RenamedTensors(tensors, {new: old for new, old in made.items() if old is not None})
