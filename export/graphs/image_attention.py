"""Attention to a picture beside the text, for IP-Adapters: a second attention of the same query, added to the first.

Keys and values of the picture are inputs, as they depend on the picture alone and not on the timestep; so no weight of
an adapter is in the graph. Follows diffusers' `IPAdapterAttnProcessor2_0` (arXiv:2308.06721).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from latentrt.runtime.errors import ExportError

from .precision import Float32Attention


class ImageAttention:
    """A processor of cross-attention; without a picture it is attention to the text.

    Attributes:
        picture: for the next call, keys and values (n, T, channels), and the strength (n,).
    """

    def __init__(self, *, float32: bool) -> None:
        """`float32`: see `Float32Attention`."""
        self.float32 = float32
        self.picture: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Apply attention; `hidden_states` and the result are (n, pixels, channels)."""
        if attention_mask is not None or temb is not None:
            raise ExportError("attention with a mask or a time embedding is not supported beside pictures")
        picture, self.picture = self.picture, None

        def heads(projected: torch.Tensor) -> torch.Tensor:
            # -1 instead of the number of tokens, which would have to cross the cut between text and loop
            split = projected.view(hidden_states.shape[0], -1, attn.heads, projected.shape[2] // attn.heads)
            return split.transpose(1, 2).float() if self.float32 else split.transpose(1, 2)

        query = heads(attn.to_q(hidden_states))
        key, value = heads(attn.to_k(encoder_hidden_states)), heads(attn.to_v(encoder_hidden_states))
        mixed = scaled_dot_product_attention(query, key, value)
        if picture is not None:
            key, value, strength = picture
            # Twice the query at half the scale is exact. TensorRT for RTX 1.7.1 crashes on two attentions of one query.
            scale = 0.5 * query.shape[-1] ** -0.5
            image = scaled_dot_product_attention(query * 2, heads(key), heads(value), scale=scale)
            mixed = mixed + strength.to(mixed.dtype)[:, None, None, None] * image
        linear, dropout = attn.to_out
        result: torch.Tensor = dropout(linear(mixed.transpose(1, 2).flatten(2).to(hidden_states.dtype)))
        return result


def attend_to_images(unet: Any) -> list[int]:
    """Give the cross-attention of a UNet this processor, in place; returns the channels of each, in graph order."""
    processors = dict(unet.attn_processors)
    widths = []
    for name, processor in processors.items():
        if name.endswith("attn2.processor"):
            processors[name] = ImageAttention(float32=isinstance(processor, Float32Attention))
            widths.append(unet.get_submodule(name.removesuffix(".processor")).to_k.out_features)
    unet.set_attn_processor(processors)
    return widths


def give_images(
    unet: Any,
    keys: Sequence[torch.Tensor],
    values: Sequence[torch.Tensor],
    strength: torch.Tensor,
) -> None:
    """Let the next call attend to pictures: (n, T, channels) for each layer, and (n, layers)."""
    found = [one for one in unet.attn_processors.values() if isinstance(one, ImageAttention)]
    for layer, (processor, key, value) in enumerate(zip(found, keys, values, strict=True)):
        processor.picture = key, value, strength[:, layer]
