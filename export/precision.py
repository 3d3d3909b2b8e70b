"""Precision of an export: the module's type, and the islands that stay float32 inside of it."""

from typing import Any

import torch

from latentrt.runtime.errors import ExportError

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def dtype_of(precision: str) -> torch.dtype:
    """The torch type of `fp32`, `fp16` or `bf16`."""
    if precision not in DTYPES:
        raise ExportError(f"precision {precision!r} is not supported: choose one of {', '.join(DTYPES)}")
    return DTYPES[precision]


def keep_unet_islands(unet: Any) -> None:
    """Keep the time embedding and the last convolution in float32, in place.

    Timesteps and the scheduler's sum are float32, so both ends of the UNet meet them without a rounding.
    """
    if unet.dtype == torch.float32:
        return
    dtype = unet.dtype
    unet.time_embedding.float()
    unet.conv_out.float()
    unet.time_embedding.register_forward_pre_hook(lambda _, inputs: tuple(_to(i, torch.float32) for i in inputs))
    unet.time_embedding.register_forward_hook(lambda _, __, output: output.to(dtype))
    unet.conv_out.register_forward_pre_hook(lambda _, inputs: tuple(_to(i, torch.float32) for i in inputs))


def _to(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, torch.Tensor) else value
