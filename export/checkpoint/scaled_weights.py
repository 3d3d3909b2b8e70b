"""Scaled weights: 8-bit tensors with a scale beside each, as ComfyUI and others write "scaled fp8", read as float32.

W = stored * scale, with one scale for a tensor or one for each of its rows. Scales of activations are not needed: they
serve kernels that compute in 8 bits.
"""

import json
from collections.abc import Iterator, Mapping

import torch

from latentrt.runtime.errors import CheckpointError

_SCALES = (".scale_weight", ".weight_scale")
_OF_ACTIVATIONS = (".scale_input", ".input_scale")
_MARK = "scaled_fp8"  # an empty tensor whose dtype is that of the weights
_RECIPE = ".comfy_quant"  # JSON as bytes
_FORMATS = ("float8_e4m3fn", "float8_e5m2", "int8_tensorwise")


class ScaledTensors(Mapping[str, torch.Tensor]):
    """The tensors without their scales, multiplied by them. `scales` maps names of weights to those of scales."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], scales: Mapping[str, str], hidden: set[str]) -> None:
        self._tensors, self._scales = tensors, scales
        self._names = [name for name in tensors if name not in hidden]

    def __getitem__(self, name: str) -> torch.Tensor:
        tensor = self._tensors[name]
        if name not in self._scales:
            return tensor
        scale = self._tensors[self._scales[name]].float()
        if scale.numel() not in (1, tensor.shape[0] if tensor.ndim else 1):
            raise CheckpointError(
                f"{self._scales[name]} has shape {tuple(scale.shape)} for a weight of shape {tuple(tensor.shape)}; "
                "supported are one scale for a tensor and one for each of its rows"
            )
        return tensor.float() * scale.reshape(-1, *[1] * (tensor.ndim - 1)) if tensor.ndim else tensor.float() * scale

    def header(self, name: str) -> torch.Tensor:
        """A tensor on the meta device with the shape and dtype of the result."""
        stored = getattr(self._tensors, "header", self._tensors.__getitem__)(name)
        return torch.empty(stored.shape, dtype=torch.float32 if name in self._scales else stored.dtype, device="meta")

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def unscaled(tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """`tensors`, with scaled ones as float32. Scales without a weight stay, so that they are noticed as unused.

    Raises `CheckpointError` for other quantizations that the file describes.
    """
    scales = {}
    for name in tensors:
        for ending in _SCALES:
            weight = name.removesuffix(ending) + ".weight"
            if name.endswith(ending) and weight in tensors:
                scales[weight] = name
    hidden = {*scales.values(), *(n for n in tensors if n == _MARK or n.endswith(_OF_ACTIVATIONS))}
    for name in tensors:
        if name.endswith(_RECIPE):
            _check_recipe(name, tensors[name])
            hidden.add(name)
    return ScaledTensors(tensors, scales, hidden) if hidden else tensors


def _check_recipe(name: str, tensor: torch.Tensor) -> None:
    try:
        recipe = json.loads(bytes(tensor.to(torch.uint8).flatten().tolist()))
        kind = recipe.get("format") if isinstance(recipe, dict) else recipe
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{name} is not JSON: {error}") from error
    if kind not in _FORMATS:
        raise CheckpointError(f"{name} describes the quantization {kind!r}; supported are {', '.join(_FORMATS)}")
