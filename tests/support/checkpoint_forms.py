"""Helpers for tests of checkpoint forms: load and compare modules, and change the files of a folder."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from latentrt.export.checkpoint.checkpoint import Checkpoint
from latentrt.export.checkpoint.public_configs import PUBLIC_CONFIGS
from latentrt.export.checkpoint.source import Source
from latentrt.export.checkpoint.torch_modules import empty_module
from latentrt.runtime.bundle.strict_json import decode, encode

PARTS = ("text_encoder", "unet", "vae")
UNET_FILE = "diffusion_pytorch_model.safetensors"


def modules(source: Source | Path, dtype: torch.dtype = torch.float32) -> dict[str, dict[str, torch.Tensor]]:
    """Component -> parameter -> tensor, as the exporter loads them."""
    checkpoint = Checkpoint.open(source)
    return {part: dict(checkpoint.load(part, dtype).state_dict()) for part in PARTS}


def assert_equal(got: dict[str, Any], expected: dict[str, Any]) -> None:
    """Same components, names, dtypes and bits."""
    for part in expected:
        assert got[part].keys() == expected[part].keys()
        for name, tensor in expected[part].items():
            assert got[part][name].dtype == tensor.dtype
            assert torch.equal(got[part][name], tensor), (part, name)


def through_json(source: Source) -> Source:
    """The source as the parity check's process receives it."""
    return decode(Source, json.loads(json.dumps(encode(source))), "source")


def meta_parts(row: str) -> dict[str, dict[str, torch.Tensor]]:
    """Tensors of a public checkpoint on the meta device; `row` is a key of `PUBLIC_CONFIGS`."""
    configs = PUBLIC_CONFIGS[row]
    parts = [part for part in (*PARTS, "text_encoder_2") if part in configs]
    return {part: dict(empty_module(part, configs[part]).state_dict()) for part in parts}


def shard(
    folder: Path, index: str, names: tuple[str, ...] = ("a.safetensors", "b.safetensors", "c.safetensors")
) -> Path:
    """Replace the UNet's weights by fp16 shards; returns the index."""
    unet = {k: v.half() for k, v in load_file(folder / "unet" / UNET_FILE).items()}
    (folder / "unet" / UNET_FILE).unlink()
    map_ = {key: names[i % len(names)] for i, key in enumerate(sorted(unet))}
    for name in names:
        if "/" not in name:
            save_file({k: unet[k] for k, file in map_.items() if file == name}, folder / "unet" / name)
    (folder / "unet" / index).write_text(json.dumps({"metadata": {}, "weight_map": map_}))
    return folder / "unet" / index


def edit_unet(folder: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change the UNet's weights in place."""
    weights = load_file(folder / "unet" / UNET_FILE)
    edit(weights)
    save_file(weights, folder / "unet" / UNET_FILE)
