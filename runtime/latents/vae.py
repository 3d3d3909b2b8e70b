"""The VAE of a bundle: images to the moments of latents, and latents to images, whole or in tiles."""

from functools import partial

import numpy as np
from numpy.typing import NDArray

from latentrt.runtime.arrays import Float32, RunGraph
from latentrt.runtime.bundle import Model

from .vae_tiling import Moments, tiled_decode, tiled_encode


class Vae:
    """The VAE's graphs. `tiling` splits images that are larger than the VAE's training size into tiles."""

    def __init__(self, model: Model, run: RunGraph) -> None:
        """`run` runs a graph by name."""
        self._model, self._run = model, run

    def encode(self, pixels: Float32, *, tiling: bool = False) -> Moments:
        """Encode (n, H, W, 3) in [-1, 1] to mean and logvar, each (n, C, h, w), without the scaling factor.

        A VAE that has no distribution gives None as logvar.
        """
        model = self._model
        if tiling and max(pixels.shape[1:3]) > model.vae_tile * model.vae_scale_factor:
            return tiled_encode(self._encode, pixels, tile=model.vae_tile, factor=model.vae_scale_factor)
        return self._encode(pixels)

    def decode(
        self, latents: Float32, *, tiling: bool = False, graph: str = "vae_decoder"
    ) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
        """Decode (n, C, h, w) to (n, H, W, 3) bytes and (n,) counts of values that were not finite.

        Args:
            graph: "vae_decoder", or "preview_decoder" where the bundle has it.
        """
        model, decode = self._model, partial(self._decode, graph)
        if tiling and max(latents.shape[2:]) > model.vae_tile:
            return tiled_decode(decode, latents, tile=model.vae_tile, factor=model.vae_scale_factor)
        return decode(latents)

    def _encode(self, pixels: Float32) -> Moments:
        outputs = self._run("vae_encoder", {"images": pixels})
        return outputs["mean"], outputs.get("logvar")

    def _decode(self, graph: str, latents: Float32) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
        outputs = self._run(graph, {"latents": latents})
        return outputs["images"], outputs["nonfinite"]
