"""Find the files of a VAE that is given beside a checkpoint: a folder in the diffusers format, or files of any layout.

A file has no config. TAESD's layouts are told by the names of tensors, and its config is that of `AutoencoderTiny`'s
defaults; any other file is an `AutoencoderKL` with the config of the checkpoint's own.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from latentrt.runtime.errors import CheckpointError

from .find_files import WEIGHTS, PartWeights
from .part_configs import TINY
from .single_file import Weights, vae_weights
from .weight_files import RenamedTensors, consistent, find_variants, read_json, weights_from_file

# The modules of TAESD's own taesd_encoder.safetensors and taesd_decoder.safetensors, which are numbered alike.
_NUMBERED = re.compile(r"(\d+)\.(conv\.\d+\.|skip\.)?(weight|bias)")
_HALVES = ("encoder", "decoder")


@dataclass(frozen=True, slots=True, eq=False)
class VaeFiles:
    """A VAE: its config, its tensors, and name -> path of the files that it is read from."""

    config: dict[str, Any]
    weights: PartWeights
    files: dict[str, Path]


def vae_files(path: Path, own: Mapping[str, Any], *, allow_pickle: bool) -> VaeFiles:
    """The VAE in a folder or file.

    Args:
        own: config of the checkpoint's VAE.

    Raises `CheckpointError` for missing and malformed files.
    """
    if path.is_dir():
        return _of_folder(path, allow_pickle=allow_pickle)
    tensors = weights_from_file(path, allow_pickle=allow_pickle)
    if (half := _half_of(tensors)) is not None:
        return _of_halves(path, tensors, half, allow_pickle=allow_pickle)
    if any(name.startswith("decoder.layers.") for name in tensors):
        return VaeFiles({"_class_name": TINY}, PartWeights(lambda: tensors), {path.name: path})
    return VaeFiles(dict(own), PartWeights(lambda: tensors, partial(vae_weights, config=own)), {path.name: path})


def preview_vae_files(path: Path, *, allow_pickle: bool) -> VaeFiles:
    """The decoder of an `AutoencoderTiny`, without its encoder; TAESD's file of the decoder is enough."""
    tensors = {} if path.is_dir() else weights_from_file(path, allow_pickle=allow_pickle)
    if _half_of(tensors) == "decoder":
        weights = PartWeights(lambda: _named_as_diffusers(tensors, "decoder"))
        return VaeFiles({"_class_name": TINY}, weights, {path.name: path})
    found = vae_files(path, {"_class_name": "AutoencoderKL"}, allow_pickle=allow_pickle)
    return VaeFiles(found.config, PartWeights(lambda: _without_encoder(found.weights.stored())), found.files)


def _of_folder(path: Path, *, allow_pickle: bool) -> VaeFiles:
    folder = path / "vae" if (path / "vae" / "config.json").is_file() else path
    config = folder / "config.json"
    content = read_json(config, "A VAE folder contains config.json and weights; TAESD's own files are given by name.")
    variants = find_variants(folder, WEIGHTS["vae"], allow_pickle=allow_pickle)
    found = consistent({"vae": variants})["vae"]
    return VaeFiles(content, PartWeights(found.open), {file.name: file for file in (config, *found.all_files)})


def _of_halves(path: Path, tensors: Weights, half: str, *, allow_pickle: bool) -> VaeFiles:
    """TAESD's own two files: `path`, which is one half, and the other one beside it, which is named alike."""
    other = next(name for name in _HALVES if name != half)
    file = path.with_name(path.name.replace(half, other))
    found = weights_from_file(file, allow_pickle=allow_pickle) if file.is_file() else {}
    if _half_of(found) != other:
        raise CheckpointError(
            f"{path} is the {half} of a TAESD alone. Put its {other} beside it, with a name such as "
            f"taesd_{other}.safetensors"
        )
    both = {**_named_as_diffusers(tensors, half), **_named_as_diffusers(found, other)}
    return VaeFiles({"_class_name": TINY}, PartWeights(lambda: both), {path.name: path, file.name: file})


def _half_of(tensors: Weights) -> str | None:
    """Whether tensors are those of TAESD's own encoder or decoder, whose first module, a clamp, has none."""
    if not tensors or not all(_NUMBERED.fullmatch(name) for name in tensors):
        return None
    return "encoder" if "0.weight" in tensors else "decoder"


def _named_as_diffusers(tensors: Weights, half: str) -> Weights:
    """As diffusers names them: its decoder clamps outside of the numbered modules."""
    first = 1 if half == "decoder" else 0
    names = {}
    for name in tensors:
        number, _, rest = name.partition(".")
        names[f"{half}.layers.{int(number) - first}.{rest}"] = name
    return RenamedTensors(tensors, names)


def _without_encoder(tensors: Weights) -> Weights:
    return RenamedTensors(tensors, {name: name for name in tensors if not name.startswith("encoder.")})
