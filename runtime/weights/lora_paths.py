"""Paths and factors of LoRAs, and the files behind a path: one, or one with PEFT's settings. Knows no content."""

import hashlib
import math
import numbers
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from latentrt.runtime.errors import InputError, shown
from latentrt.runtime.files import sha256_of_file

from .peft_config import CONFIG
from .tensor_file import require_regular_file

_PEFT, _DIFFUSERS = "adapter_model.safetensors", "pytorch_lora_weights.safetensors"


@dataclass(frozen=True, slots=True)
class LoraPaths:
    """The file of tensors, and PEFT's settings if there are some."""

    tensors: Path
    config: Path | None


def lora_paths(path: Path) -> LoraPaths:
    """The files of a LoRA, given as a file or as the folder that PEFT or diffusers saved. Raises `InputError`."""
    tensors = path
    if os.path.isdir(path):  # noqa: PTH112  `Path.is_dir` raises for names that are too long
        tensors = next((path / name for name in (_PEFT, _DIFFUSERS) if (path / name).exists()), path)
        if tensors == path:
            raise InputError(f"{path} is a folder without {_PEFT} or {_DIFFUSERS}: pass a file")
    require_regular_file(tensors)
    config = tensors.with_name(CONFIG)
    return LoraPaths(tensors, config if tensors.name == _PEFT and config.exists() else None)


def sha256_of_lora(path: Path) -> str:
    """Hex sha256 of a LoRA: of its file, or of the hashes of both files that PEFT saves."""
    files = lora_paths(path)
    sha256 = sha256_of_file(files.tensors)
    if files.config is None:
        return sha256
    return hashlib.sha256(f"{sha256} {sha256_of_file(files.config)}\n".encode()).hexdigest()


def checked_factors(loras: Mapping[Path | str, float]) -> dict[Path, float]:
    """File -> factor. Raises `InputError` for anything but a mapping of paths to finite numbers."""
    if not isinstance(loras, Mapping):
        raise InputError(
            f"loras={shown(loras)}: expected a mapping of files to weights, such as {{'a.safetensors': 1}}"
        )
    checked: dict[Path, float] = {}
    for path, factor in loras.items():
        if not isinstance(path, str | os.PathLike):
            raise InputError(f"loras has the key {shown(path)}: expected the path of a file")
        if isinstance(factor, bool) or not isinstance(factor, numbers.Real) or not math.isfinite(factor):
            raise InputError(f"the LoRA {path} has the weight {shown(factor)}: expected a finite number")
        checked[Path(path)] = float(factor)
    return checked
