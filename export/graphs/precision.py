"""Precision of an export: the module's dtype, and the parts that stay in float32."""

from typing import Any

import torch

from latentrt.runtime.errors import ExportError, unknown

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def dtype_of(precision: str) -> torch.dtype:
    """The torch dtype of "fp32", "fp16" or "bf16"; raises `ExportError` for other names."""
    if precision not in DTYPES:
        raise ExportError(unknown("precision", precision, DTYPES))
    return DTYPES[precision]


def keep_unet_islands(unet: Any) -> None:
    """Keep the timestep and size embeddings, the last convolution and, if configured, attention in float32, in place.

    Timesteps and the scheduler update are float32, so neither end of the UNet rounds; a ControlNet, which has no last
    convolution, ends in the precision of the UNet's features. In models with
    `upcast_attention`, such as Stable Diffusion 2, products of queries and keys overflow float16.
    """
    if unet.dtype == torch.float32:
        return
    dtype = unet.dtype
    if unet.config.get("upcast_attention") and dtype == torch.float16:
        unet.set_attn_processor(Float32Attention())
    names = ("time_embedding", "add_embedding", "control_add_embedding")
    for embedding in filter(None, (getattr(unet, name, None) for name in names)):
        embedding.float()
        embedding.register_forward_pre_hook(lambda _, inputs: tuple(_to(i, torch.float32) for i in inputs))
        embedding.register_forward_hook(lambda _, __, output: output.to(dtype))
    if not hasattr(unet, "conv_out"):
        return
    unet.conv_out.float()
    unet.conv_out.register_forward_pre_hook(lambda _, inputs: tuple(_to(i, torch.float32) for i in inputs))


class Float32Attention:
    """Attention of a UNet's transformer blocks: projections in the UNet's dtype, the attention itself in float32.

    diffusers' processor for PyTorch's fused attention ignores `upcast_attention`, and its export would, too.
    """

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Apply attention; `hidden_states` and the result are (n, pixels, channels)."""
        if attention_mask is not None or temb is not None:
            raise ExportError("attention with a mask or a time embedding is not supported in float32")
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = (
            # -1 instead of the number of tokens, which would have to cross the cut between text and loop
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
