"""Makes a checkpoint with random weights in the diffusers folder format, offline and in seconds.

    python benchmarks/make_checkpoint.py FOLDER [--size sd15|sd21|medium] [--dtype fp16|fp32|bf16] [--seed 0]

`sd15` and `sd21` have the configs and tensors of the public checkpoints of Stable Diffusion 1.5 and 2.1, so that what
exporting and running them costs can be measured without a download; `medium` is SD 1.5 at half its width, a UNet of
220 M parameters beside a small CLIP and VAE. The pictures are noise. Weights are normal draws scaled by
1/sqrt(fan-in) and norms are close to 1, so that activations stay finite in fp16. Modules are built without memory,
so the most that is needed is one component in the chosen type. The last line is JSON.
"""

import argparse
import json
import math
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from harness import finish, show_environment, show_table
from safetensors.torch import save_file

TOKENIZER = Path(__file__).resolve().parent.parent / "tests" / "data" / "shapes" / "tokenizer"
DTYPES = {"fp16": torch.float16, "fp32": torch.float32, "bf16": torch.bfloat16}

# What all sizes have in common; SIZES below holds the rest, with the public checkpoints' own values.
TEXT: dict[str, Any] = {
    "architectures": ["CLIPTextModel"],
    "model_type": "clip_text_model",
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "dropout": 0.0,
    "eos_token_id": 2,
    "initializer_factor": 1.0,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 77,
    "pad_token_id": 1,
    "vocab_size": 49408,
}
UNET: dict[str, Any] = {
    "_class_name": "UNet2DConditionModel",
    "act_fn": "silu",
    "center_input_sample": False,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "out_channels": 4,
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
}
VAE: dict[str, Any] = {
    "_class_name": "AutoencoderKL",
    "act_fn": "silu",
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "in_channels": 3,
    "latent_channels": 4,
    "norm_num_groups": 32,
    "out_channels": 3,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
SCHEDULER: dict[str, Any] = {
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}
SD15_TEXT = {
    "hidden_act": "quick_gelu",
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "projection_dim": 768,
}
SD15_UNET = {
    "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280],
    "cross_attention_dim": 768,
    "sample_size": 64,
}
SIZES: dict[str, dict[str, dict[str, Any]]] = {
    "sd15": {
        "text_encoder": {**TEXT, **SD15_TEXT},
        "unet": {**UNET, **SD15_UNET},
        "vae": {**VAE, "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "sample_size": 512},
        "scheduler": {"_class_name": "PNDMScheduler", **SCHEDULER},
        "tokenizer": {"pad_token": "<|endoftext|>"},
    },
    "sd21": {
        "text_encoder": {
            **TEXT,
            "hidden_act": "gelu",
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_attention_heads": 16,
            "num_hidden_layers": 23,
            "projection_dim": 512,
        },
        "unet": {
            **UNET,
            "attention_head_dim": [5, 10, 20, 20],
            "block_out_channels": [320, 640, 1280, 1280],
            "cross_attention_dim": 1024,
            "dual_cross_attention": False,
            "num_class_embeds": None,
            "only_cross_attention": False,
            "sample_size": 96,
            "upcast_attention": True,
            "use_linear_projection": True,
        },
        "vae": {**VAE, "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "sample_size": 768},
        "scheduler": {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction", **SCHEDULER},
        "tokenizer": {"pad_token": "!"},
    },
    "medium": {
        "text_encoder": {**TEXT, **SD15_TEXT, "num_hidden_layers": 4},
        "unet": {**UNET, **SD15_UNET, "block_out_channels": [160, 320, 640, 640]},
        "vae": {**VAE, "block_out_channels": [64, 128, 256, 256], "layers_per_block": 1, "sample_size": 512},
        "scheduler": {"_class_name": "PNDMScheduler", **SCHEDULER},
        "tokenizer": {"pad_token": "<|endoftext|>"},
    },
}
WEIGHTS = {"text_encoder": "model", "unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model"}


def make_checkpoint(folder: Path, size: str, dtype: torch.dtype, seed: int = 0) -> dict[str, int]:
    """Write a random checkpoint to `folder`, which must not exist; returns the number of parameters by component."""
    configs = SIZES[size]
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)
    counts = {}
    for part, stem in WEIGHTS.items():
        _write(folder / part / "config.json", configs[part])
        weights = {
            name: random_weight(name, shape, generator).to(dtype) for name, shape in parameters(part, configs[part])
        }
        save_file(weights, folder / part / f"{stem}.safetensors", metadata={"format": "pt"})
        counts[part] = sum(weight.numel() for weight in weights.values())
    _write(folder / "scheduler" / "scheduler_config.json", configs["scheduler"])
    _write_tokenizer(folder / "tokenizer", configs["tokenizer"]["pad_token"])
    _write(folder / "model_index.json", _index(configs["scheduler"]["_class_name"]))
    return counts


def parameters(part: str, config: dict[str, Any]) -> Iterator[tuple[str, torch.Size]]:
    """Names and shapes of a component's tensors as they stand in a file, from a module without memory."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        if part == "text_encoder":
            module: Any = CLIPTextModel(CLIPTextConfig(**config))
        else:
            module = {"unet": UNet2DConditionModel, "vae": AutoencoderKL}[part].from_config(config)
    for name, tensor in module.state_dict().items():
        # transformers 5.6 dropped this level from the module; the public files have it.
        prefix = "text_model." if part == "text_encoder" and not name.startswith("text_model.") else ""
        yield prefix + name, tensor.shape


def random_weight(name: str, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    """A float32 tensor whose scale neither blows activations up nor lets them vanish."""
    draw = torch.empty(shape).normal_(generator=generator)
    if len(shape) > 1:
        return draw.mul_(1 / math.sqrt(shape[1:].numel()))
    return draw.mul_(0.05).add_(1.0 if name.endswith("weight") else 0.0)


def _index(scheduler: str) -> dict[str, Any]:
    return {
        "_class_name": "StableDiffusionPipeline",
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", scheduler],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }


def _write_tokenizer(folder: Path, pad: str) -> None:
    folder.mkdir()
    for name in ("vocab.json", "merges.txt"):
        shutil.copyfile(TOKENIZER / name, folder / name)
    tokens = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    config = {**tokens, "pad_token": pad, "model_max_length": 77, "tokenizer_class": "CLIPTokenizer"}
    _write(folder / "tokenizer_config.json", config)


def _write(file: Path, data: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Make a checkpoint with random weights.")
    parser.add_argument("folder", type=Path, help="where to write it; must not exist")
    parser.add_argument("--size", choices=tuple(SIZES), default="sd15", help="default: sd15")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="fp16", help="default: fp16")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    arguments = parser.parse_args()
    if arguments.folder.exists():
        parser.error(f"{arguments.folder} exists already")
    card = show_environment()
    start = time.perf_counter()
    counts = make_checkpoint(arguments.folder, arguments.size, DTYPES[arguments.dtype], arguments.seed)
    seconds = time.perf_counter() - start
    show_table(("component", "parameters"), [(part, f"{count:,}") for part, count in counts.items()])
    results = {"size": arguments.size, "dtype": arguments.dtype, "parameters": counts, "seconds": round(seconds, 2)}
    finish("make_checkpoint", card, results, [])


if __name__ == "__main__":
    main()
