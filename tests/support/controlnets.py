"""Small random ControlNets and adapters for the checkpoints of `checkpoints.py`, as folders in the diffusers format."""

import json
from pathlib import Path
from typing import Any

import torch


def tiny_controlnet(folder: Path, unet: Path, *, seed: int, **config: Any) -> Any:
    """A ControlNet for a UNet's folder, with no weight at zero; written to `folder`, and returned.

    Args:
        config: changes of its config, such as `global_pool_conditions=True`.
    """
    from diffusers import ControlNetModel, UNet2DConditionModel

    torch.manual_seed(seed)
    base = UNet2DConditionModel.from_pretrained(unet)
    with torch.random.fork_rng():
        net = ControlNetModel.from_unet(base, conditioning_embedding_out_channels=_hint_channels(unet))
    if config:
        net = ControlNetModel.from_config({**net.config, **config})
    return _saved(_randomized(net, seed), folder)


def tiny_union(folder: Path, unet: Path, *, seed: int, types: int = 6) -> Any:
    """A ControlNet-Union for the UNet of an SDXL checkpoint; written to `folder`, and returned."""
    from diffusers import ControlNetUnionModel

    own = json.loads((unet / "config.json").read_text())
    names = (
        "block_out_channels",
        "down_block_types",
        "layers_per_block",
        "norm_num_groups",
        "cross_attention_dim",
        "transformer_layers_per_block",
        "attention_head_dim",
        "use_linear_projection",
        "addition_embed_type",
        "addition_time_embed_dim",
        "projection_class_embeddings_input_dim",
    )
    width = own["block_out_channels"][0]
    net = ControlNetUnionModel(
        **{name: own[name] for name in names if name in own},
        conditioning_embedding_out_channels=_hint_channels(unet),
        num_control_type=types,
        num_trans_channel=width,
        num_trans_head=4,
        num_proj_channel=width,
    )
    return _saved(_randomized(net, seed), folder)


MAKERS = {"controlnet": tiny_controlnet, "union": tiny_union}


def _hint_channels(unet: Path) -> tuple[int, ...]:
    """As many halvings as the VAE beside the UNet has."""
    levels = len(json.loads((unet.parent / "vae" / "config.json").read_text())["block_out_channels"])
    return tuple(8 * 2**level for level in range(levels))


def _randomized(net: Any, seed: int) -> Any:
    """Weights that steer: those that training begins at zero are random, too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
            else:
                parameter.copy_(0.1 * noise + ("norm" in name and name.endswith("weight")))
    return net.eval()


def _saved(net: Any, folder: Path) -> Any:
    net.save_pretrained(folder)
    return net
