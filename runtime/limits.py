"""How much one call may ask for: a mistyped or hostile number must not use up all memory.

Each limit can be raised or lowered by an environment variable, LATENTRT_ and its name, which is read on import.
"""

import os

from .errors import InputError


def _limit(name: str, default: int) -> int:
    text = os.environ.get(f"LATENTRT_{name}", str(default))
    if not text.isascii() or not text.isdigit() or len(text) > 18 or int(text) < 1:
        raise InputError(f"LATENTRT_{name}={text[:80]!r}: expected an integer >= 1; the default is {default}")
    return int(text)


MAX_SIDE = _limit("MAX_SIDE", 16384)  # height and width in pixels
MAX_IMAGES = _limit("MAX_IMAGES", 1024)
MAX_PIXELS = _limit("MAX_PIXELS", 2**26)  # of all images of a call: 64 of 1024x1024, or one of 8192x8192
MAX_CHARACTERS = _limit("MAX_CHARACTERS", 100_000)  # of a text
MAX_TOKENS = _limit("MAX_TOKENS", 2**18)  # of all texts of a call that the UNet reads, those of each image counted
MAX_STEPS = _limit("MAX_STEPS", 10_000)  # also of custom timesteps and sigmas
# Of the noise that a call draws, in pixels: initial noise and each draw of each image.
MAX_NOISE = 64 * MAX_PIXELS
# Of one text: 128 chunks of CLIP. Attention between them and a large picture is the largest array of a UNet.
MAX_TOKENS_OF_TEXT = _limit("MAX_TOKENS_OF_TEXT", 128 * 77)


def raised_by(name: str) -> str:
    """How to raise a limit, for messages."""
    return f"set LATENTRT_{name} to raise the limit"
