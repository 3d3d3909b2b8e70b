"""LoRA (arXiv:2106.09685): files in the formats of kohya and diffusers, as changes of a bundle's weights.

Changed weights are always computed from the checkpoint's own weights, in float32 and rounded once, so that removing a
LoRA restores them exactly.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from latentrt.runtime.arrays import Float32, NewWeights
from latentrt.runtime.bundle import Bundle
from latentrt.runtime.errors import InputError

from .lora_names import LoraNames, split_name
from .stored import from_float32, read_safetensors, stored_weight, to_float32

_OTHER_METHODS = {
    "hada_": "LoHa",
    "lokr_": "LoKr",
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "oft_": "OFT",
}


@dataclass(slots=True, eq=False)
class LowRank:
    """The change of one weight: scale * up @ down, with `mid` in between for convolutions in three factors."""

    down: Float32 | None = None
    up: Float32 | None = None
    mid: Float32 | None = None
    alpha: float | None = None

    def delta(self, shape: tuple[int, ...]) -> Float32:
        """The change, in the checkpoint's shape of the weight. Raises `ValueError` if it does not fit that shape."""
        if self.down is None or self.up is None:
            raise ValueError("up or down is missing")
        if self.down.ndim < 2 or self.up.ndim < 2 or not len(self.down):
            raise ValueError(f"down and up have shapes {self.down.shape} and {self.up.shape}")
        rank = self.down.shape[0]
        up, down = self.up.reshape(-1, rank), self.down
        if self.mid is None:
            product = up @ down.reshape(rank, -1)
        else:  # up (out, rank), mid (rank, rank, height, width), down (rank, in)
            product = np.einsum("or,rskl,si->oikl", up, self.mid, down.reshape(rank, -1), optimize=True)
        scale = 1.0 if self.alpha is None else self.alpha / rank
        result: Float32 = (product * np.float32(scale)).reshape(shape)
        return result


@dataclass(frozen=True, slots=True, eq=False)
class Change:
    """The change of one weight by one file, and its factor."""

    path: Path
    factor: float
    low_rank: LowRank


def read_lora(path: Path, parameters: Iterable[str]) -> dict[str, LowRank]:
    """Parameter of the checkpoint -> its change. Raises `InputError` if any tensor matches none of `parameters`."""
    tensors, metadata = read_safetensors(path)
    for name in tensors:
        other = next((method for mark, method in _OTHER_METHODS.items() if mark in name), None)
        if other is not None:
            raise InputError(
                f"{path} is a {other} ({name}), not a LoRA: merge it into the checkpoint, then export that"
            )
    names = LoraNames(parameters)
    changes: dict[str, LowRank] = {}
    unknown = []
    for name, tensor in tensors.items():
        module, part = split_name(name)
        parameter = names.parameter(module) if part else None
        if parameter is None:
            unknown.append(name)
            continue
        change = changes.setdefault(parameter, LowRank())
        if part == "alpha":
            change.alpha = _alpha(path, name, tensor)
        else:
            setattr(change, part, tensor)
    if unknown or not changes:
        raise InputError(_no_match(path, unknown, len(tensors), names))
    _scale_from_metadata(path, changes, metadata)
    return changes


def read_loras(loras: Iterable[tuple[Path, float]], parameters: Iterable[str]) -> dict[str, list[Change]]:
    """Parameter of the checkpoint -> its changes by these files, each with its factor."""
    parameters = list(parameters)
    changes: dict[str, list[Change]] = {}
    for path, factor in loras:
        for parameter, low_rank in read_lora(path, parameters).items():
            changes.setdefault(parameter, []).append(Change(path, factor, low_rank))
    return changes


def summed_delta(parameter: str, shape: tuple[int, ...], changes: Iterable[Change]) -> Float32:
    """The sum of all changes of one weight, in the checkpoint's shape. Raises `InputError` if one does not fit."""
    total = np.zeros(shape, np.float32)
    for change in changes:
        try:
            total += change.low_rank.delta(shape) * np.float32(change.factor)
        except ValueError as error:
            raise InputError(
                f"{change.path} does not fit {parameter} of shape {shape} ({error}). "
                "Was it trained for another model family?"
            ) from error
    return total


def changed_weights(bundle: Bundle, loras: Mapping[Path, float]) -> NewWeights:
    """Graph -> initializer -> the checkpoint's weight plus all changes times their factors, in the stored dtype."""
    weights = bundle.manifest.weights
    changed: dict[str, dict[str, NDArray[np.generic]]] = {}
    for parameter, changes in read_loras(loras.items(), weights).items():
        first = weights[parameter][0]
        delta = summed_delta(parameter, first.shape[::-1] if first.transposed else first.shape, changes)
        for use in weights[parameter]:
            base = to_float32(stored_weight(bundle, use), use.stored_dtype)
            whole = base + (delta.T if use.transposed else delta)
            changed.setdefault(use.graph, {})[use.initializer] = from_float32(whole, use.stored_dtype)
    return changed


def file_and_weight(text: str) -> tuple[str, float]:
    """Split "style.safetensors:0.8" into path and weight; the default weight is 1."""
    path, colon, weight = text.rpartition(":")
    try:
        return (path, float(weight)) if colon else (text, 1.0)
    except ValueError:
        return text, 1.0  # a path with a colon


def _alpha(path: Path, name: str, tensor: Float32) -> float:
    if tensor.size != 1:
        raise InputError(f"{path}: {name} has shape {tensor.shape}; expected one number")
    return float(tensor.item())


def _scale_from_metadata(path: Path, changes: Mapping[str, LowRank], metadata: Mapping[str, str]) -> None:
    """Set alphas that are not stored as tensors: newer diffusers files have them as JSON in the metadata."""
    try:
        settings = json.loads(metadata.get("lora_adapter_metadata", "{}"))
    except ValueError as error:
        raise InputError(f"{path}: lora_adapter_metadata is not valid JSON: {error}") from error
    if not isinstance(settings, dict):
        raise InputError(f"{path}: lora_adapter_metadata: expected a JSON object, got {type(settings).__name__}")
    for parameter, change in changes.items():
        part, _, module = parameter.removesuffix(".weight").partition(".")
        patterns: dict[str, float] = settings.get(f"{part}.alpha_pattern") or {}
        alpha = next((a for end, a in patterns.items() if module.endswith(end)), settings.get(f"{part}.lora_alpha"))
        if change.alpha is None and alpha is not None and change.down is not None:
            rank = change.down.shape[0]
            change.alpha = alpha * (rank**0.5 if settings.get(f"{part}.use_rslora") else 1)


def _no_match(path: Path, unknown: list[str], total: int, names: LoraNames) -> str:
    if not unknown:
        return f"{path} is not a LoRA: it has no tensors"
    near = names.nearest(split_name(unknown[0])[0])
    hint = f" The nearest names are {' and '.join(near)}." if near else ""
    return (
        f"{path}: {len(unknown)} of {total} tensors match nothing in this bundle, such as {unknown[0]}.{hint} "
        "Is it a LoRA for this model family?"
    )
