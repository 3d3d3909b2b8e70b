"""The text encoder as it is exported: ids in, every hidden state that a UNet may consume out."""

from typing import Any

import torch

from .onnx_export import TensorInput


class TextEncoderGraph(torch.nn.Module):
    """`input_ids` (n, 77) int64 -> `hidden_states` (n, K, 77, D) float32.

    Index k is what the UNet consumes at `clip_skip=k`: the output of the k-th layer from the end, final norm applied.
    """

    def __init__(self, text_encoder: Any) -> None:
        super().__init__()
        self.text_encoder = text_encoder

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """See the class."""
        states = self.text_encoder(input_ids, output_hidden_states=True).hidden_states
        # transformers moved the parts of CLIPTextModel up from `.text_model` in 5.6.
        norm = getattr(self.text_encoder, "text_model", self.text_encoder).final_layer_norm
        result: torch.Tensor = norm(torch.stack(states[:0:-1], dim=1)).float()
        return result


def inputs(max_length: int) -> list[TensorInput]:
    """Example inputs for the export."""
    ids = torch.arange(2 * max_length).reshape(2, max_length)
    return [TensorInput("input_ids", ids, {0: "n"})]
