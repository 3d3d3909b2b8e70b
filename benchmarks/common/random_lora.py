"""Random LoRA files that fit a bundle."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from latentrt.runtime import Bundle

RANK, PROJECTIONS = 4, (".to_q", ".to_v", ".to_out.0", ".conv1", ".q_proj")


def random_lora(file: Path, bundle_path: Path, seed: int) -> Path:
    """Write a LoRA file in PEFT's format that changes every module whose name ends as one of `PROJECTIONS`."""
    random = np.random.default_rng(seed)
    tensors: dict[str, NDArray[np.float32]] = {}
    for parameter, uses in Bundle.open(bundle_path).manifest.weights.items():
        module = parameter.removesuffix(".weight")
        if module == parameter or module.startswith("vae.") or not module.endswith(PROJECTIONS):
            continue
        shape = uses[0].shape[::-1] if uses[0].transposed else uses[0].shape
        out, into, *kernel = shape
        scale = 0.3 / np.sqrt(RANK * into * np.prod(kernel, dtype=int))
        down = random.standard_normal((RANK, into, *kernel)).astype(np.float32)
        up = random.standard_normal((out, RANK, *[1] * len(kernel))).astype(np.float32) * np.float32(scale)
        tensors |= {f"{module}.lora_A.weight": down, f"{module}.lora_B.weight": up}
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, file)
    return file
