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
    """Keep the embeddings of time and sizes, the last convolution, and where the config wants it attention in float32.

    In place. Timesteps and the scheduler's sum are float32, so both ends of the UNet meet them without a rounding. With
    `upcast_attention`, as in Stable Diffusion 2.x, products of queries and keys pass float16's largest number.
    """
    if unet.dtype == torch.float32:
        return
    dtype = unet.dtype
    if unet.config.get("upcast_attention") and dtype == torch.float16:
        unet.set_attn_processor(Float32Attention())
    for embedding in filter(None, (unet.time_embedding, getattr(unet, "add_embedding", None))):
        embedding.float()
        embedding.register_forward_pre_hook(lambda _, inputs: tuple(_to(i, torch.float32) for i in inputs))
        embedding.register_forward_hook(lambda _, __, output: output.to(dtype))
    unet.conv_out.float()
    unet.conv_out.register_forward_pre_hook(lambda _, inputs: tuple(_to(i, torch.float32) for i in inputs))


class Float32Attention:
    """Attention of a UNet's transformer blocks: projections in the UNet's type, everything between in float32.

    diffusers' processor for PyTorch's fused attention ignores `upcast_attention`, and so would its export.
    """

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """See the class; `hidden_states` and the result are (n, pixels, channels)."""
        if attention_mask is not None or temb is not None:
            raise ExportError("attention with a mask or a time embedding is not supported in float32")
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = (
            # -1 and not the number of tokens, which would have to cross the cut between text and loop
            projected.view(hidden_states.shape[0], -1, attn.heads, projected.shape[2] // attn.heads)
            .transpose(1, 2)
            .float()
            for projected in (attn.to_q(hidden_states), attn.to_k(source), attn.to_v(source))
        )
        mixed = torch.nn.functional.scaled_dot_product_attention(query, key, value)
        merged = mixed.transpose(1, 2).flatten(2).to(hidden_states.dtype)
        linear, dropout = attn.to_out
        result: torch.Tensor = dropout(linear(merged))
        return result


def _to(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, torch.Tensor) else value
