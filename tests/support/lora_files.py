"""Random LoRA files for the random SD 1.x checkpoint and the embedded model."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from support.exports import SHAPES

from latentrt.runtime.bundle import Bundle

# Modules of the random SD 1.x checkpoint: linear layers and convolutions.
UNET = [
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
    "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k",
    "up_blocks.1.attentions.1.transformer_blocks.0.attn1.to_out.0",
    "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj",
    "mid_block.attentions.0.proj_in",
    "down_blocks.0.resnets.0.conv1",
]
TEXT = ["encoder.layers.0.self_attn.q_proj", "encoder.layers.2.mlp.fc1"]


def sizes(bundle: Path, parameter: str) -> tuple[int, ...]:
    """A parameter's shape in the checkpoint."""
    use = Bundle.open(bundle).manifest.weights[parameter][0]
    return use.shape[::-1] if use.transposed else use.shape


def halves(bundle: Path, parameter: str, rank: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random down and up matrices of a parameter, large enough to change images."""
    out, into, *kernel = sizes(bundle, parameter)
    draw = torch.Generator().manual_seed(seed)
    down = torch.randn(rank, into, *kernel, generator=draw) * 0.3
    return down, torch.randn(out, rank, *[1] * len(kernel), generator=draw) * 0.3


def kohya_file(
    path: Path, bundle: Path, *, rank: int = 3, alpha: float = 2.0, seed: int = 0, text: bool = True
) -> Path:
    """Write a LoRA in kohya's format for the random SD 1.x checkpoint; returns `path`."""
    tensors = {}
    modules = [(f"unet.{m}", f"lora_unet_{m}") for m in UNET]
    modules += [(f"text_encoder.{m}", f"lora_te_text_model_{m}") for m in TEXT if text]
    for i, (parameter, name) in enumerate(modules):
        down, up = halves(bundle, f"{parameter}.weight", rank, seed + i)
        key = name.replace(".", "_")
        tensors |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": torch.tensor(alpha)}
    save_file(tensors, path)
    return path


def shapes_file(path: Path, seed: int) -> Path:
    """Write a LoRA in diffusers' format for the embedded model; it changes text encoder, `context` and `denoise`."""
    bundle = SHAPES.bundle
    tensors = {}
    for i, module in enumerate(
        (
            "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_v",
            "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_k",
            "unet.up_blocks.1.resnets.0.conv2",
            "text_encoder.encoder.layers.1.self_attn.v_proj",
        )
    ):
        down, up = halves(bundle, f"{module}.weight", 4, seed + i)
        key = module.replace("text_encoder.", "text_encoder.text_model.")
        tensors |= {f"{key}.lora_A.weight": down, f"{key}.lora_B.weight": up}
    save_file(tensors, path)
    return path
