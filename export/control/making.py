"""The model of each kind of control bundle."""

from collections.abc import Callable

import torch

from .ip_adapters import ImageEncoder, IPAdapter
from .models import Model
from .nets import Net
from .source import ControlCheckpoint
from .t2i_adapters import T2IAdapter

_MODELS: dict[str, Callable[[ControlCheckpoint, torch.dtype], Model]] = {
    "controlnet": Net,
    "controlnet-union": Net,
    "t2i-adapter": T2IAdapter,
    "ip-adapter": IPAdapter,
    "image-encoder": ImageEncoder,
}


def model_of(checkpoint: ControlCheckpoint, dtype: torch.dtype) -> Model:
    """The model of a checkpoint, at this precision."""
    return _MODELS[checkpoint.kind](checkpoint, dtype)
