"""Classifier-free guidance as the weights of each call's predictions (arXiv 2207.12598)."""

import numpy as np

from latentrt.runtime.arrays import Float32
from latentrt.runtime.errors import InputError


def check_interval(start: float, end: float) -> None:
    """Raise `InputError` unless guidance_start < guidance_end."""
    if start >= end:
        raise InputError(f"guidance_start={start:g}, guidance_end={end:g}: expected guidance_start < guidance_end")


def guidance_weights(scale: float, calls: int, *, start: float = 0.0, end: float = 1.0) -> Float32:
    """(calls, 2) float32, weights of the predictions for [negative, positive].

    Guidance is on from call `int(start * calls)` to before call `int(end * calls)` (arXiv 2404.07724; the rounding is
    that of diffusers' guiders); the other calls take the positive prediction alone.
    """
    weights = np.tile(np.array([0, 1], np.float32), (calls, 1))
    weights[int(start * calls) : int(end * calls)] = 1 - scale, scale
    return weights
