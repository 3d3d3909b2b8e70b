"""A text encoder for export: token ids in, every hidden state that a UNet may consume out."""

from typing import Any

import torch

from latentrt.export.checkpoint.families import TextEncoderRow

from .onnx_export import TensorInput


class TextEncoderGraph(torch.nn.Module):
    """`input_ids` (n, 77) int64 -> `hidden_states` (n, K, 77, D) and, if `row.pooled`, `pooled` (n, P), both float32.

    Index k is the UNet's input at `clip_skip=k`. With `row.final_norm` it is the output of the k-th layer from the end,
    after the final layer norm; otherwise that of the k-th layer before the penultimate, without the norm.
    """

    def __init__(self, text_encoder: Any, row: TextEncoderRow) -> None:
        super().__init__()
        self.row = row
        self.add_module(row.part, text_encoder)  # under this name, so that parameters are named as in the checkpoint

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """See the class's docstring."""
        text_encoder: Any = self.get_submodule(self.row.part)
        output = text_encoder(input_ids, output_hidden_states=True)
        if self.row.final_norm:
            # transformers 5.6 moved the submodules of CLIPTextModel out of `.text_model`.
            norm = getattr(text_encoder, "text_model", text_encoder).final_layer_norm
            states: torch.Tensor = norm(torch.stack(output.hidden_states[:0:-1], dim=1)).float()
        else:
            states = torch.stack(output.hidden_states[-2:0:-1], dim=1).float()
        return (states, output.text_embeds.float()) if self.row.pooled else states


def hidden_states(config: dict[str, Any], row: TextEncoderRow) -> int:
    """K, the number of hidden states that the graph returns."""
    return int(config["num_hidden_layers"]) - (0 if row.final_norm else 1)


def inputs(max_length: int) -> list[TensorInput]:
    """Example inputs for the export."""
    ids = torch.arange(2 * max_length).reshape(2, max_length)
    return [TensorInput("input_ids", ids, {0: "n"})]
