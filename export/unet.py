"""The UNet as it is exported, before it is cut: one prediction for each sample, timestep and text."""

from typing import Any

import torch

from .onnx_export import TensorInput


class UNetGraph(torch.nn.Module):
    """`sample` (n, C, h, w), `timesteps` (n,) float32, `hidden_states` (n, S, D) float32 -> `prediction`, float32."""

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, sample: torch.Tensor, timesteps: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:
        """See the class."""
        text = hidden_states.to(self.unet.dtype)
        prediction: torch.Tensor = self.unet(sample, timesteps, text, return_dict=False)[0]
        return prediction.float()


def inputs(config: dict[str, Any], dtype: torch.dtype, max_length: int) -> list[TensorInput]:
    """Example inputs for the export.

    Height and width are no multiple of the UNet's total stride: then diffusers takes the path that resizes each level
    to the size of its skip connection, which is right for every size (for multiples it does the same as doubling).
    """
    stride = 2 ** (len(config["down_block_types"]) - 1)
    channels = config.get("in_channels", 4)
    sample = torch.zeros(2, channels, 2 * stride + 1, 3 * stride + 1, dtype=dtype)
    text = torch.zeros(2, max_length, config["cross_attention_dim"])
    return [
        TensorInput("sample", sample, {0: "n", 2: "h", 3: "w"}),
        TensorInput("timesteps", torch.tensor([1.0, 500.0]), {0: "n"}),
        TensorInput("hidden_states", text, {0: "n", 1: "S"}),
    ]
