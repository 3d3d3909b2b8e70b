"""Judge drawings of the model `shapes` by their pixels: do shape, colour and background match the prompt?

    python -m benchmarks.quality.judge FOLDER [--prompts tests/data/prompts.json]

FOLDER holds one PNG per prompt, named by its index (0.png, 001.png, …); pictures may be missing. No neural network is
involved, so verdicts do not change between versions of libraries. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.common.paths import PROMPTS
from benchmarks.shapes.drawings import (
    COLOURS,
    PALETTE,
    RADII,
    SHAPES,
    Object,
    Placed,
    Scene,
    scene_from_caption,
    signed_distance,
)

COLOUR_TABLE = np.array(list(PALETTE.values()), np.float32)
BORDER = 4  # width in pixels of the border that shows only background
MIN_AREA = 90  # pixels; the smallest object has about 200
MIN_OVERLAP = 0.72  # with the best template; below it the shape is unknown

Mask = NDArray[np.bool_]
Picture = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Region:
    """An object found in a picture: the best template's shape, its origin and radius in pixels.

    `overlap` is the intersection over union with the template.
    """

    shape: str
    colour: str
    x: float
    y: float
    radius: float
    overlap: float

    def placed(self) -> Placed:
        """The object of the picture language that was found."""
        return Placed(self.shape, self.colour, self.x, self.y, self.radius)


def background_of(image: Picture) -> str:
    """The name of the most frequent colour of the border."""
    inner = np.ones(image.shape[:2], bool)
    inner[BORDER:-BORDER, BORDER:-BORDER] = False
    return COLOURS[np.bincount(_nearest(image[inner]), minlength=len(COLOURS)).argmax()]


def regions_of(image: Picture, background: str) -> list[Region]:
    """The objects in a picture, from left to right."""
    pixels = image.astype(np.float32)
    from_background = np.linalg.norm(pixels - np.array(PALETTE[background], np.float32), axis=-1)
    found = []
    for mask in _components(from_background > 40):
        inside = _eroded(mask)
        core = pixels[inside if inside.sum() > 20 else mask]
        labels = _nearest(core)
        names = [COLOURS[label] for label in np.bincount(labels, minlength=len(COLOURS)).argsort()[::-1]]
        colour = names[0] if names[0] != background else names[1]
        # The edge is where a pixel is as close to the object's own colour as to the background.
        own = np.median(core, axis=0)
        sharp = mask & (np.linalg.norm(pixels - own, axis=-1) < from_background)
        if sharp.sum() >= MIN_AREA:
            found.append(_best_template(sharp, colour))
    return sorted(found, key=lambda region: region.x)


def judge(image: Picture, scene: Scene) -> dict[str, bool]:
    """Whether `shape`, `colour` and `background` of a picture (h, w, 3) are right, and `all` three.

    With two objects, "left of" fixes their order and "and" does not. With a wrong number of objects, shape and colour
    are wrong. `size` is judged as well but is not part of `all`, as the language does not define where small ends.
    """
    background = background_of(image)
    regions = regions_of(image, background)
    verdict = dict.fromkeys(("shape", "colour", "size"), False)
    if len(regions) == len(scene.objects):
        radii = RADII[len(regions)]
        border = (radii["small"][1] + radii["large"][0]) / 2 * image.shape[0] / 128
        orders = permutations(scene.objects) if scene.relation == "and" else [scene.objects]
        verdict = max((_matches(regions, order, border) for order in orders), key=lambda one: sum(one.values()))
    verdict["background"] = background == scene.background
    verdict["all"] = verdict["shape"] and verdict["colour"] and verdict["background"]
    return verdict


def _matches(regions: Sequence[Region], objects: Sequence[Object], border: float) -> dict[str, bool]:
    pairs = list(zip(regions, objects, strict=True))
    return {
        "shape": all(region.shape == thing.shape for region, thing in pairs),
        "colour": all(thing.colour in (None, region.colour) for region, thing in pairs),
        "size": all(thing.size in (None, "large" if region.radius > border else "small") for region, thing in pairs),
    }


def _nearest(pixels: NDArray[np.uint8] | NDArray[np.float32]) -> NDArray[np.intp]:
    distances: NDArray[np.floating[Any]] = np.linalg.norm(pixels[:, None].astype(np.float32) - COLOUR_TABLE, axis=-1)
    return np.asarray(distances.argmin(axis=1))


def _eroded(mask: Mask) -> Mask:
    padded = np.pad(mask, 1)
    return mask & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]


def _components(mask: Mask) -> list[Mask]:
    """Connected regions of at least MIN_AREA pixels. In each region the largest label spreads until nothing changes."""
    labels = np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), 0)
    while True:
        before = labels
        for axis in (0, 1):  # along whole runs, so that a few rounds suffice
            for turn in (1, -1):
                labels = _spread(labels, mask, axis=axis, turn=turn)
        if np.array_equal(labels, before):
            break
    values, counts = np.unique(labels[mask], return_counts=True)
    return [labels == value for value, count in zip(values, counts, strict=True) if count >= MIN_AREA]


def _spread(labels: NDArray[np.intp], mask: Mask, *, axis: int, turn: int) -> NDArray[np.intp]:
    """Give every pixel the largest label since the last gap, in one direction."""
    lines = (labels if axis else labels.T)[:, ::turn]
    inside = (mask if axis else mask.T)[:, ::turn]
    runs = np.cumsum(~inside, axis=1) * (labels.size + 1)  # grows at each gap, so that no maximum crosses it
    spread = np.where(inside, np.maximum.accumulate(lines + runs, axis=1) - runs, 0)[:, ::turn]
    return spread if axis else spread.T


@cache
def _template(shape: str) -> tuple[float, float]:
    """Area of a shape of radius 1, and the distance of its centroid below the origin."""
    axis = (np.arange(400, dtype=np.float32) + 0.5) / 160 - 1.25
    inside = signed_distance(shape, *np.broadcast_arrays(axis[None, :], axis[:, None])) < 0
    return float(inside.sum()) / 160**2, float(axis[np.nonzero(inside)[0]].mean())


def _best_template(mask: Mask, colour: str) -> Region:
    """The best template; templates have the area and the centroid of the mask."""
    rows, columns = np.nonzero(mask)
    y, x = float(rows.mean()), float(columns.mean())
    best = Region("none", colour, x + 0.5, y + 0.5, 0.0, MIN_OVERLAP)
    grid_y, grid_x = (np.arange(side, dtype=np.float32) for side in mask.shape)
    for shape in SHAPES:
        area, below = _template(shape)
        radius = float(np.sqrt(len(rows) / area))
        across, down = np.broadcast_arrays((grid_x[None, :] - x) / radius, (grid_y[:, None] - y) / radius + below)
        template = signed_distance(shape, across.astype(np.float32), down.astype(np.float32)) < 0
        overlap = float((mask & template).sum() / (mask | template).sum())
        if overlap > best.overlap:
            # The middle of the first pixel is at 0.5, as in the drawings.
            best = Region(shape, colour, x + 0.5, y + 0.5 - below * radius, radius, overlap)
    return best


# --- many pictures --------------------------------------------------------------------------------------------------


def accuracies(pictures_from: Callable[[Sequence[str]], Iterable[Picture]], prompts: Sequence[str]) -> dict[str, float]:
    """Share of right pictures for each key of `judge`, for one object ("single/…") and two ("double/…"), and "…/n"."""
    return _summary(list(pictures_from(prompts)), [scene_from_caption(prompt) for prompt in prompts])


def _summary(pictures: Sequence[Picture], scenes: Sequence[Scene]) -> dict[str, float]:
    result: dict[str, float] = {}
    verdicts = [(len(scene.objects), judge(image, scene)) for image, scene in zip(pictures, scenes, strict=True)]
    for name, count in (("single", 1), ("double", 2)):
        chosen = [verdict for objects, verdict in verdicts if objects == count]
        result[f"{name}/n"] = len(chosen)
        for key in ("shape", "colour", "background", "all", "size") if chosen else ():
            result[f"{name}/{key}"] = round(sum(verdict[key] for verdict in chosen) / len(chosen), 4)
    return result


def confusion(pictures: Sequence[Picture], scenes: Sequence[Scene]) -> str:
    """A table of pictures with one object: the prompt's shape (rows) and the shape found (columns)."""
    seen: Counter[tuple[str, str]] = Counter()
    for image, scene in zip(pictures, scenes, strict=True):
        if len(scene.objects) == 1:
            regions = regions_of(image, background_of(image))
            seen[scene.objects[0].shape, regions[0].shape if len(regions) == 1 else f"{len(regions)} objects"] += 1
    columns = [*SHAPES, *sorted({shape for _, shape in seen} - set(SHAPES))]
    lines = [" " * 10 + "".join(f"{column:>11}" for column in columns)]
    for row in SHAPES:
        lines.append(f"{row:10}" + "".join(f"{seen[row, column] or '.':>11}" for column in columns))
    return "\n".join(lines)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Judge pictures of the model `shapes` by their pixels.")
    parser.add_argument("folder", type=Path, help="PNG files, each named by the index of its prompt")
    parser.add_argument("--prompts", type=Path, default=PROMPTS, help="default: tests/data/prompts.json")
    options = parser.parse_args()
    prompts: list[str] = json.loads(options.prompts.read_text())["prompts"]
    paths = sorted(options.folder.glob("*.png"), key=lambda path: int(path.stem))
    if not paths:
        parser.error(f"no pictures like 0.png in {options.folder}")
    pictures = [np.asarray(Image.open(path).convert("RGB")) for path in paths]
    scenes = [scene_from_caption(prompts[int(path.stem)]) for path in paths]
    print(confusion(pictures, scenes))
    print(json.dumps(_summary(pictures, scenes)))


if __name__ == "__main__":
    main()
