"""How far a quantized bundle is from its source: at each call of the source's own trajectories, and in the pictures."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from latentrt.runtime.goldens import psnr, relative_error
from latentrt.runtime.request import CallOptions

from .calls import Call, Caller

# Called once a call of `denoise` is done.
Tick = Callable[[], object]
_EQUAL = 1000.0  # dB, in the place of infinity, which JSON has not


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """What the source makes of a prompt: its calls, and its picture (H, W, 3)."""

    prompt: str
    seed: int
    calls: tuple[Call, ...]
    picture: NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """The quantized bundle against the references.

    Attributes:
        errors: prompt by prompt, (calls,) relative L2 errors of the guided prediction at the source's states.
        latents: relative L2 error of the finished latents of each prompt, drawn by the bundle alone.
        psnr: of these pictures, in dB.
        decoded: relative L2 error of the picture that the bundle's VAE makes of the source's latents, about grey.
    """

    errors: tuple[NDArray[np.float64], ...]
    latents: tuple[float, ...]
    psnr: tuple[float, ...]
    decoded: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean error of all calls, or that of the VAE if it is larger."""
        return max(float(np.concatenate(self.errors).mean()), float(np.mean(self.decoded)))

    @property
    def worst(self) -> float:
        """Largest error of any call, or of the VAE; infinite if one is not a number."""
        worst = float(np.concatenate([*self.errors, self.decoded]).max())
        return worst if math.isfinite(worst) else math.inf


def references(
    source: Caller, prompts: Sequence[str], options: CallOptions, *, seed: int, tick: Tick
) -> list[Reference]:
    """Draw with the source."""
    found = []
    for index, prompt in enumerate(prompts):
        calls = source.draw(prompt, seed + index, options, tick)
        found.append(Reference(prompt, seed + index, tuple(calls), source.decode(calls[-1].after[0])))
    return found


def measure(quantized: Caller, known: Sequence[Reference], options: CallOptions, *, tick: Tick) -> Measured:
    """Compare a bundle with references of its source."""
    errors, latents, decibels, decoded = [], [], [], []
    for reference in known:
        trajectory = quantized.trajectory(reference.prompt, reference.seed, options)
        predict = quantized.predictor(trajectory)
        row = []
        for call in reference.calls:
            row.append(relative_error(predict(call.index, call.before), call.prediction))
            tick()
        errors.append(np.array(row))
        drawn = expected = reference.calls[-1].after[0]
        for call in quantized.calls(trajectory):
            drawn = call.after[0]
            tick()
        latents.append(relative_error(drawn, expected))
        decibels.append(min(psnr(quantized.decode(drawn), reference.picture), _EQUAL))
        middle = reference.picture - np.float64(127.5)
        decoded.append(relative_error(quantized.decode(expected) - 127.5, middle))
    return Measured(tuple(errors), tuple(latents), tuple(decibels), tuple(decoded))
