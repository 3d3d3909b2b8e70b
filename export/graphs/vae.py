"""The VAE's decoder and encoder for export: latents to bytes, and images to the moments of latents."""

from typing import Any

import torch

from .onnx_export import TensorInput


class VAEDecoderGraph(torch.nn.Module):
    """`latents` (B, C, h, w) float32 -> `images` (B, 8h, 8w, 3) uint8, `nonfinite` (B,) int32.

    Divides by the scaling factor first. Bytes are round(255 (x/2 + 1/2)) with ties to even, as in diffusers' image
    processor. `nonfinite` counts NaN and infinity before clipping, because a cast to bytes would turn them black.
    """

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See the class's docstring."""
        scaled = (latents / self.vae.config.scaling_factor).to(self.vae.dtype)
        pixels = self.vae.decode(scaled, return_dict=False)[0].float()
        nonfinite = (torch.isnan(pixels) | torch.isinf(pixels)).to(torch.int32).sum(dim=(1, 2, 3), dtype=torch.int32)
        # The cast is last because TensorRT supports uint8 only as an output.
        images = torch.round((pixels * 0.5 + 0.5).clamp(0, 1) * 255).permute(0, 2, 3, 1)
        return images.to(torch.uint8), nonfinite


class VAEEncoderGraph(torch.nn.Module):
    """`images` (B, H, W, 3) float32 in [-1, 1] -> `mean`, `logvar` (B, C, h, w) float32, without the scaling factor."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See the class's docstring."""
        posterior = self.vae.encode(images.permute(0, 3, 1, 2).to(self.vae.dtype), return_dict=False)[0]
        return posterior.mean.float(), posterior.logvar.float()


def decoder_inputs(config: dict[str, Any]) -> list[TensorInput]:
    """Example inputs for the export of the decoder."""
    latents = torch.zeros(2, config.get("latent_channels", 4), 6, 10)
    return [TensorInput("latents", latents, {0: "B", 2: "h", 3: "w"})]


def encoder_inputs(config: dict[str, Any]) -> list[TensorInput]:
    """Example inputs for the export of the encoder."""
    factor = scale_factor(config)
    return [TensorInput("images", torch.zeros(2, 6 * factor, 10 * factor, 3), {0: "B", 1: "H", 2: "W"})]


def scale_factor(config: dict[str, Any]) -> int:
    """Image pixels per latent pixel along each side."""
    return int(2 ** (len(config["block_out_channels"]) - 1))
