"""Checkpoints in Stable Diffusion's original layout, from weights in diffusers' layout.

The renaming is the inverse of diffusers', and was written independently, from the layout of the original code.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

Weights = dict[str, torch.Tensor]

_TOP = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_VAE = {
    r"mid_block\.resnets\.0": "mid.block_1",
    r"mid_block\.resnets\.1": "mid.block_2",
    r"mid_block\.attentions\.0\.group_norm": "mid.attn_1.norm",
    r"mid_block\.attentions\.0\.to_out\.0": "mid.attn_1.proj_out",
    r"mid_block\.attentions\.0\.to_(\w)": r"mid.attn_1.\1",
    r"down_blocks\.(\d+)\.resnets": r"down.\1.block",
    r"down_blocks\.(\d+)\.downsamplers\.0": r"down.\1.downsample",
    "conv_norm_out": "norm_out",
    "conv_shortcut": "nin_shortcut",
}
_OPENCLIP = {
    "embeddings.token_embedding": "token_embedding",
    "embeddings.position_embedding.weight": "positional_embedding",
    "encoder.layers.": "transformer.resblocks.",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn": "attn",
    "final_layer_norm": "ln_final",
}


def single_file(
    folder: Path, path: Path, family: str, metadata: dict[str, str] | None = None, marks: Weights | None = None
) -> Path:
    """Write the weights of a diffusers folder to a single file in the original layout; returns `path`.

    Args:
        marks: further tensors.
    """
    stems = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
    if family.startswith("sdxl"):
        stems["text_encoder_2"] = "model"
    if family == "sdxl-refiner":
        del stems["text_encoder"]
    parts = {part: load_file(folder / part / f"{stem}.safetensors") for part, stem in stems.items()}
    save_file({**original_layout(parts, family), **(marks or {})}, path, metadata)
    return path


def original_layout(parts: Mapping[str, Mapping[str, torch.Tensor]], family: str) -> Weights:
    """Component -> tensors of a checkpoint ("sd1", "sd2", "sdxl"), as one dict with their original names.

    A checkpoint of "sdxl" without the first text encoder is a refiner.
    """
    result = {f"model.diffusion_model.{k}": v for k, v in unet_tensors(parts["unet"]).items()}
    result |= {f"first_stage_model.{k}": v for k, v in vae_tensors(parts["vae"]).items()}
    text = {k.removeprefix("text_model."): v for k, v in parts.get("text_encoder", {}).items()}
    if family == "sd2":
        result |= {f"cond_stage_model.model.{k}": v for k, v in openclip_tensors(text).items()}
        width = len(text["final_layer_norm.weight"])
        result["cond_stage_model.model.text_projection"] = torch.ones(width, width, device=result[_FIRST].device)
        result["cond_stage_model.model.logit_scale"] = torch.ones(())
    else:
        prefix = "cond_stage_model" if family == "sd1" else "conditioner.embedders.0"
        result |= {f"{prefix}.transformer.text_model.{k}": v for k, v in text.items()}
    if family.startswith("sdxl"):
        second = openclip_tensors({k.removeprefix("text_model."): v for k, v in parts["text_encoder_2"].items()})
        result |= {f"conditioner.embedders.{1 if text else 0}.model.{k}": v for k, v in second.items()}
    return {name: tensor.contiguous() for name, tensor in result.items()}


_FIRST = "model.diffusion_model.input_blocks.0.0.weight"


def unet_tensors(weights: Mapping[str, torch.Tensor]) -> Weights:
    """A UNet's tensors under their original names."""
    layers = 1 + max(int(m[1]) for name in weights if (m := re.match(r"down_blocks\.0\.resnets\.(\d+)", name)))
    return {unet_name(name, layers, weights): tensor for name, tensor in weights.items()}


def unet_name(name: str, layers: int, weights: Mapping[str, Any]) -> str:
    for new, old in _TOP.items():
        if name.startswith(f"{new}."):
            return old + _inner(name.removeprefix(new))
    match = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)(\..+)", name)
    assert match, name
    side, block, kind, layer, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
    if kind == "downsamplers":
        return f"input_blocks.{(block + 1) * (layers + 1)}.0{rest.replace('.conv.', '.op.')}"
    if kind == "upsamplers":
        attends = any(other.startswith(f"up_blocks.{block}.attentions.") for other in weights)
        return f"output_blocks.{block * (layers + 1) + layers}.{2 if attends else 1}{rest}"
    place = "input_blocks" if side == "down" else "output_blocks"
    index = block * (layers + 1) + layer + (1 if side == "down" else 0)
    return f"{place}.{index}.{0 if kind == 'resnets' else 1}{_inner(rest)}"


def _inner(rest: str) -> str:
    first, _, others = rest[1:].partition(".")
    return f".{_RESNET[first]}.{others}" if first in _RESNET else rest


def vae_tensors(weights: Mapping[str, torch.Tensor]) -> Weights:
    """A VAE's tensors under their original names; attention weights become 1x1 convolutions."""
    levels = 1 + max(int(m[1]) for name in weights if (m := re.match(r"decoder\.up_blocks\.(\d+)", name)))
    result = {}
    for name, tensor in weights.items():
        old = re.sub(r"up_blocks\.(\d+)\.", lambda m: f"up.{levels - 1 - int(m[1])}.", name)
        old = old.replace(".upsamplers.0", ".upsample")
        old = re.sub(r"(up\.\d+)\.resnets", r"\1.block", old)
        for pattern, replacement in _VAE.items():
            old = re.sub(pattern, replacement, old)
        convolution = re.search(r"attn_1\.(q|k|v|proj_out)\.weight", old)
        result[old] = tensor[:, :, None, None] if convolution else tensor
    return result


def openclip_tensors(weights: Mapping[str, torch.Tensor]) -> Weights:
    """A text encoder's tensors in OpenCLIP's layout; query, key and value projections are concatenated."""
    result = {}
    for name, tensor in weights.items():
        old = name
        for new, original in _OPENCLIP.items():
            old = old.replace(new, original)
        if name == "text_projection.weight":
            result["text_projection"] = tensor.T
        elif match := re.fullmatch(r"(.*\.attn)\.q_proj\.(weight|bias)", old):
            thirds = [weights[name.replace("q_proj", third)] for third in ("q_proj", "k_proj", "v_proj")]
            result[f"{match[1]}.in_proj_{match[2]}"] = torch.cat(thirds)
        elif not re.search(r"\.[kv]_proj\.", old):
            result[old] = tensor
    return result
