"""The UNet for export, before the cut: one prediction for each sample, timestep and text."""

from collections.abc import Sequence
from typing import Any

import torch

from latentrt.export.checkpoint.families import extra_channels, time_inputs

from .image_attention import give_images
from .onnx_export import TensorInput
from .ports import fusable


class UNetGraph(torch.nn.Module):
    """`sample` (n, C, h, w), `timesteps` (n,) float32, `hidden_states` (n, S, D) float32 -> `prediction`, float32.

    UNets with additional inputs also take `pooled` (n, P), `time_ids` (n, 6 or 5), `guidance_embedding` (n, E), all
    float32, and `extra` (n, 5, h, w), which is concatenated to the sample's channels. With ports (see `ports.py`) they
    take `residuals`, `features`, `image_keys` and `image_values`, tuples of tensors in the UNet's dtype, and
    `image_strength` (n, layers).
    """

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.unet = unet

    def forward(
        self,
        sample: torch.Tensor,
        timesteps: torch.Tensor,
        hidden_states: torch.Tensor,
        pooled: torch.Tensor | None = None,
        time_ids: torch.Tensor | None = None,
        guidance_embedding: torch.Tensor | None = None,
        extra: torch.Tensor | None = None,
        residuals: Sequence[torch.Tensor] | None = None,
        features: Sequence[torch.Tensor] | None = None,
        image_keys: Sequence[torch.Tensor] | None = None,
        image_values: Sequence[torch.Tensor] | None = None,
        image_strength: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """See the class's docstring."""
        if image_keys is not None and image_values is not None and image_strength is not None:
            give_images(self.unet, image_keys, image_values, image_strength)
        prediction: torch.Tensor = self.unet(
            sample if extra is None else torch.cat([sample, extra], dim=1),
            timesteps,
            hidden_states.to(self.unet.dtype),
            timestep_cond=guidance_embedding,
            added_cond_kwargs=None if pooled is None else {"text_embeds": pooled, "time_ids": time_ids},
            down_block_additional_residuals=None if residuals is None else residuals[:-1],
            mid_block_additional_residual=None if residuals is None else residuals[-1],
            down_intrablock_additional_residuals=None if features is None else fusable(self.unet, features),
            return_dict=False,
        )[0]
        return prediction.float()


def inputs(config: dict[str, Any], dtype: torch.dtype, max_length: int, *, time_ids: int = 6) -> list[TensorInput]:
    """Example inputs for the export.

    Height and width are not multiples of the UNet's total stride. diffusers then resizes each level to the size of its
    skip connection, which is correct for every size; for multiples of the stride it equals doubling.

    `time_ids`: see `Family.time_ids`.
    """
    stride = 2 ** (len(config["down_block_types"]) - 1)
    size = (2 * stride + 1, 3 * stride + 1)
    pixels = {0: "n", 2: "h", 3: "w"}
    text = torch.zeros(2, max_length, config["cross_attention_dim"])
    extra = extra_channels(config)
    return [
        TensorInput("sample", torch.zeros(2, config.get("out_channels", 4), *size, dtype=dtype), pixels),
        TensorInput("timesteps", torch.tensor([1.0, 500.0]), {0: "n"}),
        TensorInput("hidden_states", text, {0: "n", 1: "S"}),
        *(TensorInput(more.name, torch.zeros(2, *more.shape), {0: "n"}) for more in time_inputs(config, time_ids)),
        *([TensorInput("extra", torch.zeros(2, extra, *size, dtype=dtype), pixels)] if extra else []),
    ]
