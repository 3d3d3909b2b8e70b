"""Draws a checked call, pass by pass: texts and pictures to trajectories, the loop, latents to pictures.

Knows the order of the stages, and the clock. Knows nothing of loading, threads or options.
"""

import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from latentrt.runtime.loop.resident import Passed, run
from latentrt.runtime.request import Call
from latentrt.runtime.scheduler import REGISTERS

from .arrays import Float32
from .image import pil_from_arrays
from .protocols import Trajectory
from .stages import Stages, generators_of

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """Finished pictures.

    Attributes:
        images: PIL images, or (images, H, W, 3) uint8 for output_type "np"; an empty list for "latent".
        latents: (images, C, h, w) float32.
        seeds: one for each image.
        timings: milliseconds by stage: tokenize, text_encoder, vae_encoder, denoise, vae_decoder, total.
    """

    images: "list[Image.Image] | NDArray[np.uint8]"
    latents: Float32
    seeds: tuple[int, ...]
    timings: dict[str, float]


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """A finished denoising call. Read it before the next step is requested; reading waits for the device.

    Attributes:
        index, total: of the call, counted from 0, over both passes where there are two. Some schedulers need more than
            one call a step.
        result: the pictures, with the last step only.
    """

    index: int
    total: int
    result: Result | None
    _stages: Stages
    _images: Sequence[Passed]
    _tiling: bool

    def latents(self) -> Float32:
        """(images, C, h, w) float32: what the model sees next; with the last step of a pass, its latents."""
        return _register(self._images, 0)

    def preview(self, method: str = "auto") -> "list[Image.Image]":
        """The pictures as the model predicts them now.

        Args:
            method: "rgb" maps latents to colours, one for each latent pixel, in a fraction of a millisecond; "taesd"
                decodes them with the bundle's small preview decoder; "vae" with its VAE. "auto" is the first of
                "taesd", "rgb" and "vae" that the bundle has.

        Raises: InputError: an unknown method, or one that the bundle lacks.
        """
        images = self._stages.preview(_register(self._images, REGISTERS - 1), method, tiling=self._tiling)
        return pil_from_arrays(images, [{}] * len(images))


class Drawing:
    """One call, drawn step by step."""

    def __init__(self, call: Call, stages: Stages, refiner: Stages | None) -> None:
        self._call, self._stages = call, stages
        self._second_stages = stages if refiner is None or not call.refines else refiner
        self._tiling = bool(call.first.options["vae_tiling"])
        self._clock = _Clock()

    def steps(self) -> Iterator[Step]:
        """Draw, and yield after every UNet call."""
        call, generators = self._call, generators_of(self._call.first)
        trajectories = self._stages.trajectories(call.first, lap=self._clock.lap, generators=generators)
        if call.second is None:
            yield from self._steps(self._stages, trajectories, 0)
            return
        latents = yield from self._steps(self._stages, trajectories, 0)
        second = call.second_from(latents, self._pictures)
        generators = generators if call.refines else generators_of(second)
        trajectories = self._second_stages.trajectories(second, lap=self._clock.lap, generators=generators)
        yield from self._steps(self._second_stages, trajectories, len(call.first.plan))

    def _steps(self, stages: Stages, trajectories: Sequence[Trajectory], before: int) -> Generator[Step, None, Float32]:
        """One pass, after so many UNet calls; returns its latents."""
        latents, total = np.empty(0, np.float32), self._call.unet_calls
        with closing(stages.slots(trajectories[0].bucket, len(trajectories))) as slots:
            for images in run(slots, trajectories):
                index, result = before + images[0].index, None
                if images[0].finished:
                    latents = _register(images, 0)
                    self._clock.lap("denoise")
                if index == total - 1:
                    result = self._result(stages, latents)
                yield Step(index, total, result, stages, images, self._tiling)
                stages.require_open()
        return latents

    def _result(self, stages: Stages, latents: Float32) -> Result:
        request = self._call.first
        images: list[Image.Image] | NDArray[np.uint8] = []
        if request.options["output_type"] == "latent":
            _require_finite(stages, np.asarray(~np.isfinite(latents).all(axis=(1, 2, 3))))
        else:
            images = self._decoded(stages, latents)
        if request.options["output_type"] == "pil":
            images = self._stages.pil_images(request, np.asarray(images))
        return Result(images, latents, request.seeds, self._clock.done())

    def _pictures(self, latents: Float32) -> NDArray[np.uint8]:
        """Of the first pass."""
        return self._decoded(self._stages, latents)

    def _decoded(self, stages: Stages, latents: Float32) -> NDArray[np.uint8]:
        images, nonfinite = stages.decode(latents, tiling=self._tiling)
        self._clock.lap("vae_decoder")
        _require_finite(stages, nonfinite)
        return images


def _require_finite(stages: Stages, bad: NDArray[np.bool_]) -> None:
    if bad.any():
        raise stages.overflowed(np.flatnonzero(bad).tolist(), len(bad))


def _register(images: Sequence[Passed], register: int) -> Float32:
    """(images, C, h, w)."""
    copies = [image.fetch(register) for image in images]
    return np.stack([copy.result() for copy in copies])


class _Clock:
    """Milliseconds by stage."""

    def __init__(self) -> None:
        self._start = self._last = time.perf_counter()
        self._laps: dict[str, float] = {}

    def lap(self, stage: str) -> None:
        """The time since the last lap belongs to `stage`."""
        now = time.perf_counter()
        self._laps[stage] = self._laps.get(stage, 0.0) + 1000 * (now - self._last)
        self._last = now

    def done(self) -> dict[str, float]:
        """All laps, and the total."""
        return {**self._laps, "total": 1000 * (time.perf_counter() - self._start)}
