"""How true the outlines of drawn shapes are: intersection over union with the best template of the shape found.

Beside it the bound that the autoencoder sets: the same for drawings that it only encodes and decodes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from benchmarks.shapes.drawings import SHAPES, Scene, draw
from latentrt.runtime import Pipeline

from .judge import background_of, judge, regions_of

Pictures = Sequence[NDArray[np.uint8]]


def overlaps(pictures: Pictures, scenes: Sequence[Scene]) -> dict[str, float]:
    """Mean overlap of each shape, and of all ("mean"), in the pictures that are right."""
    found: dict[str, list[float]] = {shape: [] for shape in SHAPES}
    for picture, scene in zip(pictures, scenes, strict=True):
        if judge(picture, scene)["all"]:
            for region in regions_of(picture, background_of(picture)):
                found[region.shape].append(region.overlap)
    means = {shape: float(np.mean(values)) for shape, values in found.items() if values}
    return {name: round(value, 4) for name, value in {**means, "mean": float(np.mean([*means.values()]))}.items()}


def reconstructed(pipe: Pipeline, scenes: Sequence[Scene], seed: int = 5) -> tuple[Pictures, Pictures]:
    """True drawings of scenes, and what the autoencoder makes of them."""
    drawn = draw(scenes, np.random.default_rng(seed))
    decoded = []
    for at in range(0, len(drawn), 10):
        mean, _ = pipe._stages.vae.encode(drawn[at : at + 10].astype(np.float32) / 127.5 - 1)
        latents = mean * np.float32(pipe.bundle.manifest.model.scaling_factor)
        decoded.append(pipe._stages.vae.decode(latents)[0])
    return list(drawn), list(np.concatenate(decoded))
