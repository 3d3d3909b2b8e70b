"""A picture as CLIP's image encoder reads it, as transformers' `CLIPImageProcessor` prepares it."""

from typing import TYPE_CHECKING

import numpy as np

from latentrt.runtime.arrays import Float32

if TYPE_CHECKING:
    from PIL import Image

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def clip_pixels(picture: "Image.Image | Float32", side: int) -> Float32:
    """(S, S, 3) RGB in [0, 1]: the shorter side resized to `side` with bicubic filtering, and the middle cut out.

    Arrays (H, W, channels) in [0, 1] are rounded to 8 bits first.
    """
    from PIL import Image

    if isinstance(picture, np.ndarray):
        whole = np.broadcast_to(picture[:, :, :3], (*picture.shape[:2], 3))
        picture = Image.fromarray(np.rint(whole * 255).astype(np.uint8))
    rgb = picture.convert("RGB")
    width, height = rgb.size
    short, long = min(width, height), max(width, height)
    other = int(side * long / short)
    resized = rgb.resize((side, other) if width <= height else (other, side), Image.Resampling.BICUBIC)
    left, top = (resized.width - side) // 2, (resized.height - side) // 2
    cut = resized.crop((left, top, left + side, top + side))
    pixels: Float32 = np.asarray(cut, np.float32) / np.float32(255)
    return pixels


def empty_pixels(side: int) -> Float32:
    """(S, S, 3): the picture that is 0 for the encoder, for the negative prompt."""
    return np.broadcast_to(np.array(MEAN, np.float32), (side, side, 3))
