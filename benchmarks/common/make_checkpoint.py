"""Make a checkpoint with random weights in the diffusers folder format, offline and in seconds.

    python -m benchmarks.common.make_checkpoint FOLDER [--size sd15|sd21|sdxl|medium] [--dtype fp16|fp32|bf16]
        [--seed 0]

`sd15`, `sd21` and `sdxl` have the configs and tensors of the public checkpoints of Stable Diffusion 1.5, 2.1 and XL, so
that the cost of exporting and running them can be measured without a download. `medium` is SD 1.5 at half its width: a
UNet of 220 M parameters with a small text encoder and VAE. The pictures are noise. Weights are normal draws scaled by
1/sqrt(fan-in), and the weights of norms are close to 1, so that activations stay finite in fp16. Modules are built
without memory, so peak memory is that of one component in the chosen type. The last line is JSON.
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
from safetensors.torch import save_file

from latentrt.export.checkpoint.find_files import WEIGHTS
from latentrt.export.checkpoint.public_configs import PUBLIC_CONFIGS
from latentrt.export.checkpoint.torch_modules import empty_module

from .harness import finish, show_environment, show_table
from .paths import SHAPES_CHECKPOINT

TOKENIZER = SHAPES_CHECKPOINT / "tokenizer"
DTYPES = {"fp16": torch.float16, "fp32": torch.float32, "bf16": torch.bfloat16}

_SD15 = PUBLIC_CONFIGS["sd1"]
SIZES: dict[str, dict[str, dict[str, Any]]] = {
    "sd15": _SD15,
    "sd21": PUBLIC_CONFIGS["sd2-v"],
    "sdxl": PUBLIC_CONFIGS["sdxl"],
    "medium": {
        **_SD15,
        "text_encoder": {**_SD15["text_encoder"], "num_hidden_layers": 4},
        "unet": {**_SD15["unet"], "block_out_channels": [160, 320, 640, 640]},
        "vae": {**_SD15["vae"], "block_out_channels": [64, 128, 256, 256], "layers_per_block": 1},
    },
}


def make_checkpoint(folder: Path, size: str, dtype: torch.dtype, seed: int = 0) -> dict[str, int]:
    """Write a random checkpoint to `folder`, which must not exist; return the number of parameters by component."""
    configs = SIZES[size]
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)
    counts = {}
    parts = _parts(size)
    for part in parts:
        _write(folder / part / "config.json", configs[part])
        weights = {
            name: random_weight(name, shape, generator).to(dtype) for name, shape in parameters(part, configs[part])
        }
        save_file(weights, folder / _file(part), metadata={"format": "pt"})
        counts[part] = sum(weight.numel() for weight in weights.values())
    _write(folder / "scheduler" / "scheduler_config.json", configs["scheduler"])
    index = {"feature_extractor": [None, None], "requires_safety_checker": False, "safety_checker": [None, None]}
    for part in parts:
        index[part] = ["transformers" if part.startswith("text_encoder") else "diffusers", _class_name(configs[part])]
    for name in ("tokenizer", "tokenizer_2"):
        if name in configs:
            _write_tokenizer(folder / name, configs[name]["pad_token"])
            index[name] = ["transformers", "CLIPTokenizer"]
    index["scheduler"] = ["diffusers", configs["scheduler"]["_class_name"]]
    _write(folder / "model_index.json", {**configs["index"], **index})
    return counts


def tensors_of(size: str) -> Iterator[tuple[str, str, torch.Size]]:
    """File, name and shape of each tensor of a checkpoint, in the order in which `make_checkpoint` draws them."""
    for part in _parts(size):
        for name, shape in parameters(part, SIZES[size][part]):
            yield _file(part), name, shape


def _parts(size: str) -> list[str]:
    return [part for part in WEIGHTS if part in SIZES[size]]


def _file(part: str) -> str:
    return f"{part}/{WEIGHTS[part]}.safetensors"


def parameters(part: str, config: dict[str, Any]) -> Iterator[tuple[str, torch.Size]]:
    """Names and shapes of a component's tensors as they are in the public files."""
    for name, tensor in empty_module(part, config).state_dict().items():
        # transformers 5.6 dropped this prefix from the first text encoder's module; the public files have it.
        bare = part == "text_encoder" and not name.startswith("text_model.")
        yield f"text_model.{name}" if bare else name, tensor.shape


def random_weight(name: str, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    """A float32 tensor with a scale at which activations neither explode nor vanish."""
    draw = torch.empty(shape).normal_(generator=generator)
    if len(shape) > 1:
        return draw.mul_(1 / math.sqrt(shape[1:].numel()))
    return draw.mul_(0.05).add_(1.0 if name.endswith("weight") else 0.0)


def _class_name(config: dict[str, Any]) -> str:
    return str(config["_class_name"] if "_class_name" in config else config["architectures"][0])


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
    parser.add_argument("folder", type=Path, help="folder to write; must not exist")
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
