"""What some models add to the embedding of the timestep: pooled text and sizes (SDXL), guidance (distilled models)."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from latentrt.runtime.arrays import Float32
from latentrt.runtime.bundle import Graph, takes, takes_score
from latentrt.runtime.errors import InputError

SIZE_OPTIONS = (
    "original_size",
    "crops_coords_top_left",
    "target_size",
    "negative_original_size",
    "negative_crops_coords_top_left",
    "negative_target_size",
)


SCORES = {"negative_aesthetic_score": 2.5, "aesthetic_score": 6.0}  # and diffusers' defaults


def time_ids_from_call(options: Mapping[str, Any], graph: Graph, height: int, width: int) -> Float32:
    """(2, 6) of [negative, positive]: original size, top left of the crop, target size, each as (height, width).

    As in diffusers, the negative sizes are used if both are given; otherwise they equal the positive ones. SDXL's
    refiner gets (2, 5), see `_refiner_ids`. Raises `InputError` for models that take no sizes or scores, and for half a
    pair of negative ones.
    """
    given: dict[str, tuple[int, int]] = {n: options[n] for n in SIZE_OPTIONS if options.get(n) is not None}
    if takes_score(graph):
        return _refiner_ids(given, options, (height, width))
    if scores := [name for name in SCORES if options.get(name) is not None]:
        raise InputError(f"{', '.join(scores)}: only SDXL's refiner takes an aesthetic score; leave it out")
    if given and not takes(graph, "time_ids"):
        raise InputError(f"{', '.join(given)}: this model takes no sizes, only SDXL does; leave them out")
    here = (height, width)
    positive = (
        *given.get("original_size", here),
        *given.get("crops_coords_top_left", (0, 0)),
        *given.get("target_size", here),
    )
    negative = positive
    own = {"negative_original_size", "negative_target_size"} & set(given)
    if len(own) == 1:
        raise InputError("negative_original_size and negative_target_size go together: pass both")
    if own:
        crop = given.get("negative_crops_coords_top_left", (0, 0))
        negative = (*given["negative_original_size"], *crop, *given["negative_target_size"])
    return np.array([negative, positive], np.float32)


def _refiner_ids(given: Mapping[str, tuple[int, int]], options: Mapping[str, Any], here: tuple[int, int]) -> Float32:
    """(2, 5): original size, top left of the crop, aesthetic score.

    Follows `_get_add_time_ids` of diffusers' `StableDiffusionXLImg2ImgPipeline`, whose negative crop begins at (0, 0)
    unless it is given, and which reads no target size; given ones are refused here.
    """
    if unread := [name for name in given if name.endswith("target_size")]:
        raise InputError(f"{', '.join(unread)}: SDXL's refiner takes an aesthetic score instead; leave it out")
    original = given.get("original_size", here)
    rows = []
    for prefix, size in (("negative_", given.get("negative_original_size", original)), ("", original)):
        crop, name = given.get(f"{prefix}crops_coords_top_left", (0, 0)), f"{prefix}aesthetic_score"
        score = options.get(name)
        rows.append([*size, *crop, SCORES[name] if score is None else score])
    return np.array(rows, np.float32)


def time_inputs(
    graph: Graph, *, pooled: Float32 | None, time_ids: Float32, guidance_scale: float, groups: int
) -> dict[str, Float32]:
    """The inputs that the graph `time` has beside timesteps, for one image, each (G, width) float32.

    Args:
        pooled: (G, P), for models that take it.
        time_ids: see `time_ids_from_call`.
    """
    result: dict[str, Float32] = {}
    for spec in graph.inputs:
        if spec.name == "pooled" and pooled is not None:
            result["pooled"] = pooled
        elif spec.name == "time_ids":
            result["time_ids"] = time_ids[-groups:]
        elif spec.name == "guidance_embedding":
            embedding = guidance_embedding(guidance_scale, int(spec.shape[1]))
            result["guidance_embedding"] = np.tile(embedding, (groups, 1))
    return result


def guidance_embedding(guidance_scale: float, width: int) -> Float32:
    """(width,): sines and cosines of 1000 (guidance_scale - 1) at decreasing frequencies.

    diffusers' `get_guidance_scale_embedding`, in float32 as there: the angles are large, and their rounding shows.
    """
    half = width // 2
    step = np.float32(np.log(np.float32(10000))) / np.float32(half - 1)
    frequencies = np.exp(np.arange(half, dtype=np.float32) * -step)
    angles = np.float32(guidance_scale - 1) * np.float32(1000) * frequencies
    return np.pad(np.concatenate([np.sin(angles), np.cos(angles)]), (0, width % 2)).astype(np.float32)
