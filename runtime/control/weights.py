"""The weight of a ControlNet in each call, as a table: what is data needs no code in the loop."""

import numpy as np

from latentrt.runtime.arrays import Float32


def control_weights(
    calls: int, groups: int, residuals: int, *, scale: float, start: float, end: float, guess_mode: bool, pools: bool
) -> Float32:
    """(M, G, J) factors of the residuals of each call and guidance group; 0 where the net has no say.

    As diffusers' `StableDiffusionControlNetPipeline` and `ControlNetModel.forward` compute them, in float64.

    Args:
        scale: strength of the net.
        start, end: shares of the calls between which it has a say.
        guess_mode: leave out the negative group, and let deep residuals count more than shallow ones.
        pools: the net averages its residuals over pixels; then all of them count the same.
    """
    k = np.arange(calls)
    keeps = ~((k / calls < start) | ((k + 1) / calls > end))
    depth = np.ones(residuals) if pools or not guess_mode else np.logspace(-1, 0, residuals)
    group = np.ones(groups)
    if guess_mode and groups > 1:
        group[:-1] = 0
    table: Float32 = (scale * keeps[:, None, None] * group[None, :, None] * depth).astype(np.float32)
    return table
