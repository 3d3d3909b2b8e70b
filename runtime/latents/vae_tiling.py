"""The VAE on large images, tile by tile, so that memory does not grow with the image.

Tiles overlap by a quarter and are blended there. The layout is that of diffusers' `AutoencoderKL`, for any VAE.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from latentrt.runtime.arrays import Float32

OVERLAP = 0.25
Bytes = NDArray[np.uint8]
Moments = tuple[Float32, Float32 | None]  # mean and logvar; without a distribution there is no logvar


def tiled_decode(
    decode: Callable[[Float32], tuple[Bytes, NDArray[np.int32]]], latents: Float32, *, tile: int, factor: int
) -> tuple[Bytes, NDArray[np.int32]]:
    """Decode (n, C, h, w) to (n, factor * h, factor * w, 3) bytes and (n,) counts of values that were not finite.

    Args:
        decode: decodes one tile.
        tile: side of a tile in latent pixels.
        factor: pixels per latent pixel.
    """
    nonfinite = np.zeros(len(latents), np.int32)

    def one(part: Float32) -> Float32:
        images, bad = decode(np.ascontiguousarray(part.transpose(0, 3, 1, 2)))
        np.add(nonfinite, bad, out=nonfinite)
        return images.astype(np.float32)

    pixels = _tiled(one, latents.transpose(0, 2, 3, 1), tile=tile, grown=tile * factor)
    return np.rint(pixels).astype(np.uint8), nonfinite


def tiled_encode(encode: Callable[[Float32], Moments], pixels: Float32, *, tile: int, factor: int) -> Moments:
    """Encode (n, factor * h, factor * w, 3) to mean and logvar, (n, C, h, w); arguments as for `tiled_decode`."""
    counts = []

    def one(part: Float32) -> Float32:
        moments = [moment for moment in encode(np.ascontiguousarray(part)) if moment is not None]
        counts.append(len(moments))
        return np.concatenate(moments, axis=1).transpose(0, 2, 3, 1)

    both = _tiled(one, pixels, tile=tile * factor, grown=tile).transpose(0, 3, 1, 2)
    mean, *logvar = np.split(np.ascontiguousarray(both), counts[0], axis=1)
    return mean, logvar[0] if logvar else None


def _tiled(run: Callable[[Float32], Float32], array: Float32, *, tile: int, grown: int) -> Float32:
    """Apply `run` to tiles of (n, height, width, channels) and join them; `tile` pixels become `grown` pixels."""
    step, fade = int(tile * (1 - OVERLAP)), int(grown * OVERLAP)
    keep = grown - fade
    above: list[Float32] = []
    bands = []
    for top in range(0, array.shape[1], step):
        row = [run(array[:, top : top + tile, left : left + tile]) for left in range(0, array.shape[2], step)]
        for i, piece in enumerate(row):
            if above:
                _fade(above[i], piece, fade, axis=1)
            if i:
                _fade(row[i - 1], piece, fade, axis=2)
        bands.append(np.concatenate([piece[:, :keep, :keep] for piece in row], axis=2))
        above = row
    return np.concatenate(bands, axis=1)


def _fade(before: Float32, piece: Float32, width: int, *, axis: int) -> None:
    """Blend the end of `before` into the start of `piece`, in place."""
    width = min(before.shape[axis], piece.shape[axis], width)
    ends = (slice(None),) * axis
    end = before[(*ends, slice(before.shape[axis] - width, None))]
    begin = piece[(*ends, slice(0, width))]
    weight = (np.arange(width, dtype=np.float32) / np.float32(width)).reshape(-1, *[1] * (3 - axis))
    begin[:] = end * (1 - weight) + begin * weight
