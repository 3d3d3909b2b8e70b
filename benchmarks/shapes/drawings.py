"""The picture language of the model `shapes`: scenes, their captions and their drawings.

    python -m benchmarks.shapes.drawings

A scene has one object ("a large red star on a blue background") or two ("a red circle and a small heart on a white
background", "… left of …"). A caption may omit the size and colour of an object; the drawing then picks them. All
choices come from the given numpy Generators. The command writes the held-out prompts to `tests/data/prompts.json`;
training scenes never have one of these captions.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from benchmarks.common.paths import PROMPTS

SIDE = 128
PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "green": (40, 160, 60),
    "blue": (40, 80, 220),
    "yellow": (250, 220, 60),
    "orange": (245, 135, 25),
    "purple": (150, 60, 190),
    "white": (245, 245, 245),
    "black": (20, 20, 20),
}
COLOURS = tuple(PALETTE)
SHAPES = ("circle", "square", "triangle", "star", "heart", "diamond")
# Radii in pixels by number of objects. Two objects share the picture, so each is smaller.
RADII = {1: {"small": (22.0, 26.0), "large": (40.0, 48.0)}, 2: {"small": (18.0, 20.5), "large": (26.5, 30.0)}}
LINE = 1.5  # width in pixels of the lines of an edge map
JITTER = 12.0  # largest distance in pixels of an object from the middle of its column, in x and in y

Relation = Literal["and", "left of"]
Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True)
class Object:
    """An object of a scene; the drawing chooses attributes that are `None`."""

    shape: str
    colour: str | None = None
    size: str | None = None

    def __str__(self) -> str:
        return _with_article(" ".join(word for word in (self.size, self.colour, self.shape) if word))


@dataclass(frozen=True, slots=True)
class Scene:
    """What a caption says. `relation` joins two objects: "left of" fixes their order, "and" does not."""

    objects: tuple[Object, ...]
    background: str
    relation: Relation = "and"

    def __post_init__(self) -> None:
        if len(self.objects) not in (1, 2):
            raise ValueError(f"a scene has one or two objects, not {len(self.objects)}")
        if self.background in {thing.colour for thing in self.objects}:
            raise ValueError(f"an object has the colour of its background ({self.background})")

    def caption(self) -> str:
        """The caption, such as "a large red star on a blue background"."""
        return f"{f' {self.relation} '.join(map(str, self.objects))} on {_with_article(self.background)} background"


def scene_from_caption(caption: str) -> Scene:
    """The inverse of `Scene.caption`."""
    things, _, background = caption.removesuffix(" background").rpartition(" on ")
    relation: Relation = "left of" if " left of " in things else "and"
    objects = []
    for thing in things.split(f" {relation} "):
        words = thing.split()[1:]
        colour = next((word for word in words if word in PALETTE), None)
        size = next((word for word in words if word in RADII[1]), None)
        objects.append(Object(words[-1], colour, size))
    scene = Scene(tuple(objects), background.split()[-1], relation)
    if scene.caption() != caption:
        raise ValueError(f"not in the picture language: {caption!r}")
    return scene


def without_shapes(caption: str) -> str:
    """The caption without its objects' names, such as "a large red on a blue background".

    Another word in their place, such as "shape", would be one that the text encoder has never seen.
    """
    return " ".join(word for word in caption.split() if word not in SHAPES)


def _with_article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


# --- choosing scenes ----------------------------------------------------------------------------------------------


def random_scene(
    rng: np.random.Generator, *, objects: int, colour_named: float = 0.9, shapes: Sequence[str] = SHAPES
) -> Scene:
    """One or two objects; two thirds have a named size, a share of `colour_named` a named colour."""
    background = str(rng.choice(COLOURS))
    others = [colour for colour in COLOURS if colour != background]
    things = []
    for _ in range(objects):
        colour = str(rng.choice(others)) if rng.random() < colour_named else None
        things.append(Object(str(rng.choice(shapes)), colour, (None, "small", "large")[rng.integers(3)]))
    ordered = objects == 2 and rng.random() < 0.5
    return Scene(tuple(things), background, "left of" if ordered else "and")


def held_out_prompts(*, single: int = 200, double: int = 100, seed: int = 2024) -> list[str]:
    """Distinct captions, single objects first. All colours are named, so that pictures can be judged by them."""
    rng = np.random.default_rng(seed)
    captions: dict[str, None] = {}
    for objects, count in ((1, single), (2, single + double)):
        while len(captions) < count:
            captions[random_scene(rng, objects=objects, colour_named=1.0).caption()] = None
    return list(captions)


def _digest(caption: str) -> str:
    return hashlib.sha256(caption.encode()).hexdigest()


@cache
def _held_out_digests() -> frozenset[str]:
    return frozenset(_digest(caption) for caption in json.loads(PROMPTS.read_text())["prompts"])


def training_scenes(
    rng: np.random.Generator, *, two_objects: float = 0.3, shapes: Sequence[str] = (*SHAPES, "star")
) -> Iterator[Scene]:
    """An endless stream of scenes without held-out captions. Stars, the most detailed shape, are twice as frequent."""
    while True:
        scene = random_scene(rng, objects=2 if rng.random() < two_objects else 1, shapes=shapes)
        if _digest(scene.caption()) not in _held_out_digests():
            yield scene


# --- drawing ------------------------------------------------------------------------------------------------------


def signed_distance(shape: str, x: Floats, y: Floats) -> Floats:
    """Distance to the edge of a shape of radius 1 at the origin, negative inside; y points down."""
    match shape:
        case "circle":
            return np.hypot(x, y) - 1
        case "square":
            along: Floats = np.maximum(np.abs(x), np.abs(y))
            return along - 0.84
        case "diamond":  # narrower than high, to differ from a rotated square
            return (np.abs(x) + 0.68 * np.abs(y) - 0.68) / float(np.hypot(1, 0.68))
        case "triangle":  # apex (0, -0.92), base y = 0.78 with half width 0.98
            side: Floats = (1.7 * np.abs(x) - 0.98 * (y + 0.92)) / float(np.hypot(1.7, 0.98))
            return np.maximum(y - 0.78, side)
        case "star":  # five points: folded to a tenth of a turn, one edge from the outer corner (1, 0) to the inner one
            turn = np.pi / 5
            angle = np.abs(np.mod(np.arctan2(x, -y) + turn, 2 * turn) - turn)
            radius = np.hypot(x, y)
            inner_x, inner_y = 0.45 * np.cos(turn), 0.45 * np.sin(turn)
            normal = np.array((inner_y, 1 - inner_x)) / np.hypot(inner_y, 1 - inner_x)
            distance: Floats = (radius * np.cos(angle) - 1) * normal[0] + radius * np.sin(angle) * normal[1]
            return distance
        case "heart":  # https://iquilezles.org/articles/distfunctions2d, "Heart", moved to the origin and scaled
            scale = 1.62
            x, y = np.abs(x) / scale, 0.56 - y / scale
            lobe = np.hypot(x - 0.25, y - 0.75) - 0.125**0.5
            fold = 0.5 * np.maximum(x + y, 0)
            body = np.minimum(np.hypot(x, y - 1), np.hypot(x - fold, y - fold)) * np.sign(x - y)
            return scale * np.where(x + y > 1, lobe, body)
    raise ValueError(f"unknown shape {shape!r}: expected one of {', '.join(SHAPES)}")


@dataclass(frozen=True, slots=True)
class Placed:
    """An object in a picture: its origin and radius in pixels, and its colour's name."""

    shape: str
    colour: str
    x: float
    y: float
    radius: float


def placed(scene: Scene, rng: np.random.Generator) -> list[Placed]:
    """The objects of a scene from left to right; `rng` chooses open attributes and positions."""
    count, found = len(scene.objects), []
    order = rng.permutation(count) if scene.relation == "and" else range(count)
    for place, which in enumerate(order):
        thing = scene.objects[which]
        open_colours = [colour for colour in COLOURS if colour != scene.background]
        colour = thing.colour or open_colours[rng.integers(len(open_colours))]
        size = thing.size or ("small", "large")[rng.integers(2)]
        radius = rng.uniform(*RADII[count][size])
        half = SIDE / 2 / count  # half the width of the object's column
        x = half * (2 * place + 1) + rng.uniform(-1, 1) * min(half - radius - 2, JITTER)
        y = SIDE / 2 + rng.uniform(-1, 1) * min(SIDE / 2 - radius - 2, JITTER)
        found.append(Placed(thing.shape, colour, x, y, radius))
    return found


def has_size(thing: Placed, asked: Object, count: int) -> bool:
    """Whether a placed object, one of `count`, has the size that a caption asks for."""
    low, high = RADII[count][asked.size] if asked.size else (0.0, np.inf)
    return low <= thing.radius <= high


def draw(scenes: Sequence[Scene], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Antialiased pictures (n, 128, 128, 3) of `scenes`; `rng` chooses open attributes and positions."""
    return render([placed(scene, rng) for scene in scenes], [scene.background for scene in scenes])


def render(pictures: Sequence[Sequence[Placed]], backgrounds: Sequence[str]) -> NDArray[np.uint8]:
    """Antialiased pictures (n, 128, 128, 3) of objects on backgrounds of one colour each."""
    canvas = np.empty((len(pictures), SIDE, SIDE, 3), np.float32)
    canvas[:] = np.array([PALETTE[name] for name in backgrounds], np.float32)[:, None, None, :]
    groups: dict[tuple[str, int], list[tuple[int, Placed]]] = {}
    for index, things in enumerate(pictures):
        for place, thing in enumerate(things):
            groups.setdefault((thing.shape, place), []).append((index, thing))
    grid = np.arange(SIDE, dtype=np.float32) + np.float32(0.5)
    for (shape, _), group in groups.items():  # all objects of a shape at once; a picture is in a group once
        at = [index for index, _ in group]
        where = np.array([(thing.x, thing.y, thing.radius) for _, thing in group], np.float32)
        xs, ys, radii = where.T[:, :, None, None]
        across, down = np.broadcast_arrays((grid[None, None, :] - xs) / radii, (grid[None, :, None] - ys) / radii)
        coverage = np.clip(0.5 - signed_distance(shape, across, down) * radii, 0, 1)[..., None]
        colours = np.array([PALETTE[thing.colour] for _, thing in group], np.float32)[:, None, None, :]
        canvas[at] += coverage * (colours - canvas[at])
    return np.rint(canvas).astype(np.uint8)


def outlines(things: Sequence[Placed]) -> NDArray[np.uint8]:
    """An edge map (128, 128): lines of one or two pixels, 255 on 0, along the outlines of objects."""
    lines = np.zeros((SIDE, SIDE), bool)
    grid = np.arange(SIDE, dtype=np.float32) + np.float32(0.5)
    for thing in things:
        x, y = np.meshgrid((grid - thing.x) / thing.radius, (grid - thing.y) / thing.radius)
        lines |= np.abs(signed_distance(thing.shape, x, y)) * thing.radius < LINE / 2
    return np.where(lines, np.uint8(255), np.uint8(0))


def main() -> None:
    """The command."""
    argparse.ArgumentParser(description="Write the held-out prompts to tests/data/prompts.json.").parse_args()
    PROMPTS.parent.mkdir(parents=True, exist_ok=True)
    comment = "Held out of the training of tests/data/shapes: 200 singles, 100 pairs (benchmarks/shapes/drawings.py)"
    PROMPTS.write_text(json.dumps({"comment": comment, "prompts": held_out_prompts()}, indent=1) + "\n")
    print(f"wrote {PROMPTS}")


if __name__ == "__main__":
    main()
