"""Initial latents of one image: noise and the latents of given pictures, drawn in the order of diffusers' pipelines.

Knows generators and the VAE's moments. Knows nothing of prompts, requests or batches.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from latentrt.runtime.arrays import Float32
from latentrt.runtime.scheduler import Plan

from .given_images import ImageInput
from .noise import TorchGenerator
from .vae_tiling import Moments

# (pictures, H, W, 3) in [-1, 1] -> mean and logvar, (pictures, C, h, w)
Encode = Callable[[Float32], Moments]


@dataclass(frozen=True, slots=True, eq=False)
class InitialLatents:
    """What the loop starts from, for one image.

    Attributes:
        noise: (1 + draws, C, h, w), unit normal: the initial noise, then one draw for each stochastic call.
        clean: (C, h, w), latents of the given picture.
        extra: (1 + C, h, w), for UNets that inpaint: the mask and the latents of the masked picture.
        mask: (1, h, w), for other UNets: 1 where the picture is drawn anew.
    """

    noise: Float32
    clean: Float32 | None = None
    extra: Float32 | None = None
    mask: Float32 | None = None


@dataclass(frozen=True, slots=True, eq=False)
class LatentDistribution:
    """Latents of one picture as the VAE gives them, (C, h, w). Without `logvar` they are fixed and take no draw."""

    mean: Float32
    logvar: Float32 | None
    scaling: np.float32

    def sample(self, generator: TorchGenerator) -> Float32:
        """One sample, scaled as the UNet expects it."""
        if self.logvar is None:
            return self.scaling * self.mean
        deviation = np.exp(np.float32(0.5) * np.clip(self.logvar, -30, 20))
        sample: Float32 = self.scaling * (self.mean + deviation * generator.randn(self.mean.shape))
        return sample


@dataclass(frozen=True, slots=True, eq=False)
class KnownImage:
    """The picture that one image starts from, encoded.

    Attributes:
        whole: its latents; None where the loop does not read them.
        masked: latents of the picture with the repainted part in grey, for UNets that inpaint.
        mask: (1, h, w), 1 where the picture is drawn anew; None without a mask.
    """

    whole: LatentDistribution | None
    masked: LatentDistribution | None
    mask: Float32 | None


def known_images(
    image: ImageInput, plan: Plan, *, scaling: float, factor: int, inpaints: bool, encode: Encode
) -> list[KnownImage]:
    """The picture of each image to draw; every picture is encoded once.

    Args:
        scaling: the VAE's scaling factor.
        factor: pixels per latent pixel.
        inpaints: whether the UNet takes the mask and the masked picture; other UNets get known latents blended in.
    """
    has_mask = image.mask is not None
    needs_whole = _starts_clean(plan) or not inpaints
    whole = _distributions(image, encode, scaling) if needs_whole else None
    masked = None
    if has_mask and inpaints:
        masked = _from_moments(*encode(image.masked_pixels()), scaling)
    mask = image.latent_mask(factor) if has_mask else None
    return [
        KnownImage(
            whole[row] if whole is not None else None,
            masked[row] if masked is not None else None,
            mask[row] if mask is not None else None,
        )
        for row in image.rows
    ]


def initial_latents(
    plan: Plan,
    generator: TorchGenerator,
    shape: tuple[int, int, int],
    *,
    noise: Float32 | None = None,
    known: KnownImage | None = None,
    between: TorchGenerator | None = None,
) -> InitialLatents:
    """Draw what one image needs before its loop.

    The generator draws, where needed and in this order: a sample of the picture's latents, the initial noise (none for
    plans that go on from unfinished latents), a sample of the masked picture's latents, and one draw for each
    stochastic call. A VAE without a distribution takes no draws.

    Args:
        shape: (C, h, w).
        noise: (C, h, w) to use instead of the generator's initial noise.
        between: what draws for the stochastic calls instead.
    """
    clean = known.whole.sample(generator) if known and known.whole else None
    if noise is not None:
        first = noise
    else:
        first = generator.randn(shape) if plan.initial[:, 0].any() else np.zeros(shape, np.float32)
    extra = mask = None
    if known and known.mask is not None:
        if known.masked is not None:
            extra = np.concatenate([known.mask, known.masked.sample(generator)])
        else:
            if known.whole and known.whole.logvar is not None:
                generator.randn(shape)  # diffusers samples the masked picture for other UNets too
            mask = known.mask
    draws = [(between or generator).randn(shape) for _ in range(int(plan.draws.sum()))]
    return InitialLatents(np.stack([first, *draws]), clean, extra, mask)


def _starts_clean(plan: Plan) -> bool:
    return bool(plan.initial[:, 1].any())


def _distributions(image: ImageInput, encode: Encode, scaling: float) -> list[LatentDistribution]:
    if image.pixels is not None:
        return _from_moments(*encode(image.pixels), scaling)
    assert image.latents is not None
    return [LatentDistribution(mean, None, np.float32(1)) for mean in image.latents]


def _from_moments(means: Float32, logvars: Float32 | None, scaling: float) -> list[LatentDistribution]:
    each = [None] * len(means) if logvars is None else logvars
    return [LatentDistribution(m, v, np.float32(scaling)) for m, v in zip(means, each, strict=True)]
