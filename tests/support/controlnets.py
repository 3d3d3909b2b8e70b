"""Small random ControlNets and adapters for the checkpoints of `checkpoints.py`, as folders in the diffusers format."""

import json
from collections.abc import Callable
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


def tiny_t2i_adapter(folder: Path, unet: Path, *, seed: int) -> Any:
    """A T2I-Adapter for a UNet's folder, written to `folder`; for SDXL of its own form."""
    from diffusers import T2IAdapter

    own = json.loads((unet / "config.json").read_text())
    is_xl, factor = own.get("addition_embed_type") is not None, 2 ** (len(_hint_channels(unet)) - 1)
    adapter = T2IAdapter(
        in_channels=3,
        channels=list(own["block_out_channels"]),
        num_res_blocks=1,
        downscale_factor=factor * (2 if is_xl else 1),
        adapter_type="full_adapter_xl" if is_xl else "full_adapter",
    )
    return _saved(_randomized(adapter, seed), folder)


EMBEDDING, PATCHES = 48, 257  # of a picture, for the adapters below
DEPTH = 4  # of the resampler of an IP-Adapter plus, which diffusers takes for granted


def tiny_ip_adapter(folder: Path, unet: Path, *, seed: int, plus: bool = False) -> Path:
    """An IP-Adapter as a file in the layout of the public ones, written to `folder`; returns the file."""
    from diffusers import UNet2DConditionModel
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) / shape[-1] ** 0.5

    model = UNet2DConditionModel.from_pretrained(unet)
    width = model.config.cross_attention_dim
    tensors = {
        f"image_proj.{name}": tensor for name, tensor in (_resampler if plus else _linear)(normal, width).items()
    }
    number = 1
    for name in model.attn_processors:
        if name.endswith("attn2.processor"):
            channels = model.get_submodule(name.removesuffix(".processor")).to_k.out_features
            for kind in "kv":
                tensors[f"ip_adapter.{number}.to_{kind}_ip.weight"] = normal(channels, width)
            number += 2
    folder.mkdir(parents=True, exist_ok=True)  # a run that was killed may have left it
    save_file(tensors, folder / "adapter.safetensors")
    return folder / "adapter.safetensors"


def _linear(normal: Callable[..., torch.Tensor], width: int) -> dict[str, torch.Tensor]:
    """Of a plain adapter: 4 tokens from one embedding."""
    one = {"weight": 1 + 0.1 * normal(width), "bias": 0.1 * normal(width)}
    norm = {f"norm.{name}": tensor for name, tensor in one.items()}
    return {"proj.weight": normal(4 * width, EMBEDDING), "proj.bias": 0.1 * normal(4 * width), **norm}


def _resampler(normal: Callable[..., torch.Tensor], width: int) -> dict[str, torch.Tensor]:
    """Of an adapter plus: 6 tokens from all patches; names as in the original files."""
    inner, found = 64, {"latents": normal(1, 6, 64)}
    for name, rows, columns in (("proj_in", inner, EMBEDDING), ("proj_out", width, inner)):
        found |= {f"{name}.weight": normal(rows, columns), f"{name}.bias": 0.1 * normal(rows)}
    norms = ("norm_out", *(f"layers.{i}.{name}" for i in range(DEPTH) for name in ("0.norm1", "0.norm2", "1.0")))
    for name in norms:
        size = width if name == "norm_out" else inner
        found |= {f"{name}.weight": 1 + 0.1 * normal(size), f"{name}.bias": 0.1 * normal(size)}
    for i in range(DEPTH):
        found |= {
            f"layers.{i}.0.to_q.weight": normal(inner, inner),
            f"layers.{i}.0.to_kv.weight": normal(2 * inner, inner),
        }
        found |= {f"layers.{i}.0.to_out.weight": normal(inner, inner)}
        found |= {
            f"layers.{i}.1.1.weight": normal(4 * inner, inner),
            f"layers.{i}.1.3.weight": normal(inner, 4 * inner),
        }
    return found


def tiny_image_encoder(folder: Path, _: Path, *, seed: int) -> Any:
    """CLIP's image side with 257 patches, written to `folder`."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(seed)
    config = CLIPVisionConfig(
        hidden_size=EMBEDDING, intermediate_size=64, projection_dim=EMBEDDING, num_hidden_layers=3,
        num_attention_heads=4, image_size=32, patch_size=2,
    )  # fmt: skip
    return _saved(CLIPVisionModelWithProjection(config).eval(), folder)


MAKERS: dict[str, Callable[..., Any]] = {
    "controlnet": tiny_controlnet,
    "union": tiny_union,
    "t2i": tiny_t2i_adapter,
    "ip": tiny_ip_adapter,
    "encoder": tiny_image_encoder,
}


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
