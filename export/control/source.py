"""Open a ControlNet or an adapter of any form: a folder of diffusers, a single file, or a Hub id.

Knows configs, names and shapes of tensors; knows nothing of ONNX.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from latentrt.export.checkpoint.checkpoint import hash_of_files
from latentrt.export.checkpoint.hub import folder_from_hub, is_hub_id
from latentrt.export.checkpoint.part_weights import check_weights, traced
from latentrt.export.checkpoint.torch_modules import module_from_weights
from latentrt.export.checkpoint.weight_files import (
    consistent,
    find_variants,
    objects_from_pickle,
    read_json,
    weights_from_file,
)
from latentrt.runtime.bundle.manifest import CheckpointRecord
from latentrt.runtime.errors import CheckpointError

from .kinds import config_of_file, kind_of_config, renamed_weights

_STEM = "diffusion_pytorch_model"


@dataclass(frozen=True, slots=True)
class ControlSource:
    """What to export: a folder of diffusers, a single file, or a Hub id.

    Attributes:
        config: file or folder with a config.json, for a single file of an unusual shape.
        allow_pickle: also open pickled weights, with PyTorch's restricted unpickler.
    """

    path: str
    config: str | None = None
    allow_pickle: bool = False


class ControlCheckpoint:
    """An opened ControlNet or adapter.

    Attributes:
        kind: one of the kinds of a control bundle.
        config: of its class in diffusers or transformers, with all defaults.
    """

    def __init__(self, source: ControlSource) -> None:
        """Find all files and check every tensor; raises `CheckpointError`."""
        path = Path(source.path)
        if not path.exists() and is_hub_id(source.path):
            path = folder_from_hub(source.path, allow_pickle=source.allow_pickle)
        self.name = Path(source.path).name
        if path.is_dir():
            given, files, self._open = _from_folder(path, allow_pickle=source.allow_pickle)
        else:
            given, files, self._open = _from_file(path, source)
        self.kind = kind_of_config(self.name, given)
        self._files = files
        if self.kind == "ip-adapter":  # its module follows from its tensors
            self.config = {}
            return
        headers = traced(self._open())
        renamed = renamed_weights(self.kind, headers, given)
        self.config = completed_config(self.name, self.kind, given)
        check_weights(self.name, self.kind, self.config, renamed)

    @property
    def tensors(self) -> Mapping[str, torch.Tensor]:
        """All tensors of the file by name."""
        return self._open()

    def record(self) -> CheckpointRecord:
        """The manifest's record. Reads all files."""
        return CheckpointRecord(self.name, hash_of_files(self._files), ())

    def load(self, dtype: torch.dtype) -> Any:
        """The module in eval mode."""
        weights = renamed_weights(self.kind, self._open(), self.config)
        return module_from_weights(self.kind, self.config, weights.items(), dtype, where=self.name)


Opened = tuple[dict[str, Any], dict[str, Path], Callable[[], Mapping[str, torch.Tensor]]]


def _from_folder(folder: Path, *, allow_pickle: bool) -> Opened:
    config = folder / "config.json"
    given = read_json(config, "A ControlNet or adapter of diffusers is a folder with config.json and weights.")
    stem = "model" if "architectures" in given else _STEM
    found = consistent({"": find_variants(folder, stem, allow_pickle=allow_pickle)})[""]
    return given, {file.name: file for file in (config, *found.all_files)}, found.open


def _from_file(file: Path, source: ControlSource) -> Opened:
    tensors = _tensors(file, allow_pickle=source.allow_pickle)
    files = {file.name: file}
    if source.config is None:
        return config_of_file(source.path, traced(tensors)), files, lambda: tensors
    config = Path(source.config)
    config = config / "config.json" if config.is_dir() else config
    return read_json(config), files | {config.name: config}, lambda: tensors


def _tensors(file: Path, *, allow_pickle: bool) -> Mapping[str, torch.Tensor]:
    """Those of a file; groups of an IP-Adapter's pickle become prefixes, as in its safetensors."""
    if file.suffix == ".safetensors" or not allow_pickle or not file.is_file():
        return weights_from_file(file, allow_pickle=allow_pickle)
    content = objects_from_pickle(file)
    if not {"image_proj", "ip_adapter"} <= content.keys():
        return weights_from_file(file, allow_pickle=allow_pickle)
    return {f"{group}.{name}": t for group in ("image_proj", "ip_adapter") for name, t in content[group].items()}


def completed_config(name: str, kind: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """A config with the defaults of its class; raises `CheckpointError` where it is invalid."""
    from latentrt.export.checkpoint.torch_modules import empty_module

    module: Any = empty_module(kind, {key: value for key, value in given.items() if not key.startswith("_")})
    config = module.config if isinstance(module.config, dict) else module.config.to_dict()
    if config.get("class_embed_type") or config.get("encoder_hid_dim_type") or config.get("num_class_embeds"):
        raise CheckpointError(f"{name} takes labels of classes or projected texts, which no checkpoint here has")
    return dict(config)
