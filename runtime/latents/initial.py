"""What a loop starts from: noise, and latents of pictures, drawn for each image in diffusers' order.

Knows generators and the VAE's moments; knows nothing of prompts.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from latentrt.runtime.arrays import Float32
from latentrt.runtime.request.request import Request

from .given_images import ImageInput
from .noise import TorchGenerator

# (pictures, H, W, 3) in [-1, 1] -> mean and logvar, (pictures, C, h, w)
Encode = Callable[[Float32], tuple[Float32, Float32]]


@dataclass(frozen=True, slots=True, eq=False)
class Start:
    """Arguments of `Denoiser.run` that come from noise and pictures."""

    noise: list[Float32]
    clean: Float32 | None
    extra: Float32 | None
    mask: Float32 | None


def start_from_request(
    request: Request, shape: tuple[int, int, int], *, scaling: float, inpaints: bool, encode: Encode
) -> Start:
    """Draw everything that a request needs before its loop.

    Each image has a generator of its own, so that it does not depend on its batch. It draws, where they are needed: a
    sample of the picture's latents, the initial noise, a sample of the masked picture's latents, and one draw for each
    stochastic call.

    Args:
        shape: (C, h, w) of one image's latents.
        scaling: the VAE's scaling factor.
        inpaints: whether the UNet takes the mask and the masked picture; otherwise known latents are blended in.
        encode: the VAE's encoder.
    """
    image, draws = request.image, int(request.plan.draws.sum())
    masked = image is not None and image.mask is not None
    starts_clean = bool(request.plan.initial[:, 1].any())
    whole = _Latents.of(image, encode, scaling) if image and (starts_clean or not inpaints) else None
    hidden = _Latents(*encode(image.masked_pixels()), scaling) if image and masked and inpaints else None
    noise, clean, known = [], [], []
    for i, seed in enumerate(request.seeds):
        generator = TorchGenerator(seed, request.rng)
        if whole is not None and image is not None:
            clean.append(whole.sample(int(image.rows[i]), generator))
        first = generator.randn(shape) if request.latents is None else request.latents[i]
        if hidden is not None and image is not None:
            known.append(hidden.sample(int(image.rows[i]), generator))
        elif masked:
            generator.randn(shape)  # diffusers samples the masked picture for ordinary UNets, too
        noise.append(np.stack([first, *(generator.randn(shape) for _ in range(draws))]))
    mask = _mask(image, shape) if image is not None and masked else None
    return Start(
        noise=noise,
        clean=np.stack(clean) if clean else None,
        extra=np.concatenate([mask, np.stack(known)], axis=1) if known and mask is not None else None,
        mask=None if inpaints else mask,
    )


def _mask(image: ImageInput, shape: tuple[int, int, int]) -> Float32:
    assert image.mask is not None
    return image.latent_mask(image.mask.shape[2] // shape[1])[image.rows]


class _Latents:
    """The distribution of pictures' latents; known latents have no deviation, and take no draw."""

    def __init__(self, mean: Float32, logvar: Float32 | None, scaling: float) -> None:
        self._mean, self._logvar, self._scaling = mean, logvar, np.float32(scaling)

    @classmethod
    def of(cls, image: ImageInput, encode: Encode, scaling: float) -> "_Latents":
        if image.pixels is not None:
            return cls(*encode(image.pixels), scaling)
        assert image.latents is not None
        return cls(image.latents, None, 1)

    def sample(self, picture: int, generator: TorchGenerator) -> Float32:
        mean: Float32 = self._mean[picture]
        if self._logvar is None:
            return mean
        deviation = np.exp(np.float32(0.5) * np.clip(self._logvar[picture], -30, 20))
        sample: Float32 = self._scaling * (mean + deviation * generator.randn(mean.shape))
        return sample
