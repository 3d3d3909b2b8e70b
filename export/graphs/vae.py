"""The VAE's decoder and encoder for export: latents to bytes, and images to the moments of latents."""

from collections.abc import Mapping
from typing import Any

import torch

from .onnx_export import TensorInput


class _Statistics(torch.nn.Module):
    """`latents_mean` and `latents_std` of the VAE's config, where it has them: those of its latents, by channel.

    The UNet's latents are then `scaling_factor (z - mean) / std` for latents z of the VAE, as in SDXL's pipelines.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.mean: torch.Tensor | None
        self.std: torch.Tensor | None
        for name in ("mean", "std"):
            values = config.get(f"latents_{name}")
            array = None if values is None else torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1)
            self.register_buffer(name, array)

    def restored(self, latents: torch.Tensor, scaling_factor: float) -> torch.Tensor:
        """The VAE's latents from the UNet's."""
        if self.mean is None or self.std is None:
            return latents / scaling_factor
        return latents * self.std / scaling_factor + self.mean

    def standardized(self, mean: torch.Tensor, logvar: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Moments of `(z - mean) / std` from those of z."""
        if self.mean is None or self.std is None:
            return mean, logvar
        return (mean - self.mean) / self.std, logvar - 2 * torch.log(self.std)


class VAEDecoderGraph(torch.nn.Module):
    """`latents` (B, C, h, w) float32 -> `images` (B, 8h, 8w, 3) uint8, `nonfinite` (B,) int32.

    Divides by the scaling factor first, and takes back what `latents_mean` and `latents_std` of the VAE did. Bytes are
    round(255 (x/2 + 1/2)) with ties to even, as in diffusers' image processor. `nonfinite` counts NaN and infinity
    before clipping, because a cast to bytes would turn them black.
    """

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae
        self.statistics = _Statistics(vae.config)

    def forward(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See the class's docstring."""
        scaled = self.statistics.restored(latents, self.vae.config.scaling_factor).to(self.vae.dtype)
        pixels = self.vae.decode(scaled, return_dict=False)[0].float()
        nonfinite = (torch.isnan(pixels) | torch.isinf(pixels)).to(torch.int32).sum(dim=(1, 2, 3), dtype=torch.int32)
        # The cast is last because TensorRT supports uint8 only as an output.
        images = torch.round((pixels * 0.5 + 0.5).clamp(0, 1) * 255).permute(0, 2, 3, 1)
        return images.to(torch.uint8), nonfinite


class VAEEncoderGraph(torch.nn.Module):
    """`images` (B, H, W, 3) float32 in [-1, 1] -> `mean`, `logvar` (B, C, h, w) float32, without the scaling factor.

    An `AutoencoderTiny` has no distribution: its latents are the `mean`, and there is no `logvar`.

    Where the VAE has `latents_mean` and `latents_std`, the moments are of the standardized latents: a sample times the
    scaling factor is what the UNet takes, whatever the VAE.
    """

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae
        self.statistics = _Statistics(vae.config)

    def forward(self, images: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """See the class's docstring."""
        encoded = self.vae.encode(images.permute(0, 3, 1, 2).to(self.vae.dtype), return_dict=False)[0]
        if isinstance(encoded, torch.Tensor):
            return encoded.float()
        return self.statistics.standardized(encoded.mean.float(), encoded.logvar.float())


def encoder_outputs(config: Mapping[str, Any]) -> list[str]:
    """Names of what `VAEEncoderGraph` returns."""
    return ["mean"] if config["_class_name"] == "AutoencoderTiny" else ["mean", "logvar"]


def tile_side(config: Mapping[str, Any]) -> int:
    """Side in pixels of the tiles of large images: that of diffusers' class."""
    if config["_class_name"] == "AutoencoderTiny":
        return 512
    size = config.get("sample_size") or 32
    return int(size if isinstance(size, int) else size[0])


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
