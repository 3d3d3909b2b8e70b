"""How well the ControlNet of the model `shapes` steers it: pictures from edge maps, judged by pixels.

    python -m benchmarks.quality.shapes_control --bundle BUNDLE --control CONTROL [--count 100]

Both are exported from `tests/data` (BUNDLE with `--ports control`). Prompts are held-out ones that leave out what to
draw, such as "a large red on a blue background"; the edge map shows it. Three runs: with its edge map, with that of
another picture, and without one. Writes `shapes-control.md` and `shapes-control.json`, and the contact
sheet `docs/shapes-control.png`. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from benchmarks.common.paths import PROMPTS, RESULTS, ROOT
from benchmarks.shapes.drawings import (
    SIDE,
    Placed,
    Scene,
    has_size,
    outlines,
    placed,
    render,
    scene_from_caption,
    without_shapes,
)
from latentrt.runtime import Pipeline

from .judge import background_of, regions_of
from .outlines import overlaps
from .shapes_quality import Pictures, draw

PAIRS = 0.4  # share of edge maps with two objects
SHEET = 8  # columns of the contact sheet
MARGIN = 8
WANTED = {"with": 0.90, "other": 0.40}


def questions(count: int, seed: int) -> tuple[list[Scene], list[list[Placed]]]:
    """Held-out scenes in random order, and where their objects are."""
    every = [scene_from_caption(prompt) for prompt in json.loads(PROMPTS.read_text())["prompts"]]
    pairs = round(PAIRS * count)
    scenes = [scene for scene in every if len(scene.objects) == 1][: count - pairs]
    scenes += [scene for scene in every if len(scene.objects) == 2][:pairs]
    rng = np.random.default_rng(seed)
    scenes = [scenes[i] for i in rng.permutation(len(scenes))]
    return scenes, [placed(scene, rng) for scene in scenes]


def overlap(picture: NDArray[np.uint8], things: Sequence[Placed], background: str) -> float:
    """Intersection over union of what is not background in a picture (h, w, 3) and in the drawing of `things`."""
    wanted = render([things], [background])[0]
    drawn, asked = (np.abs(one.astype(int) - one[0, 0].astype(int)).sum(axis=-1) > 60 for one in (picture, wanted))
    return float((drawn & asked).sum() / max((drawn | asked).sum(), 1))


def right(picture: NDArray[np.uint8], things: Sequence[Placed], scene: Scene) -> bool:
    """Whether a picture (h, w, 3) shows the shapes of its edge map, from left to right, in the caption's colours.

    A caption without shapes may leave open which outline has which colour, as "a red and a blue" does. Then either
    choice is right; "left of", or sizes that only one outline has, leave none.
    """
    background = background_of(picture)
    regions = regions_of(picture, background)
    if background != scene.background or [one.shape for one in regions] != [one.shape for one in things]:
        return False
    orders = permutations(scene.objects) if scene.relation == "and" else [scene.objects]
    return any(
        all(
            has_size(thing, asked, len(things)) and asked.colour in (None, region.colour)
            for region, thing, asked in zip(regions, things, order, strict=True)
        )
        for order in orders
    )


def contact_sheet(rows: dict[str, Pictures], captions: Sequence[str]) -> Image.Image:
    """A column for each prompt: its edge map, and what was drawn."""
    left, step = 70, SIDE + MARGIN
    sheet = Image.new("RGB", (left + len(captions) * step, len(rows) * step + 34), "white")
    pen = ImageDraw.Draw(sheet)
    for row, (name, pictures) in enumerate(rows.items()):
        pen.multiline_text((4, row * step + SIDE // 2), name, fill="black", font_size=11)
        for column in range(len(captions)):
            sheet.paste(Image.fromarray(pictures[column]).convert("RGB"), (left + column * step, row * step + 4))
    for column, caption in enumerate(captions):
        words = caption.split()
        lines = [" ".join(words[at : at + 4]) for at in range(0, len(words), 4)][:3]
        pen.multiline_text(
            (left + column * step, len(rows) * step), "\n".join(lines), fill="black", font_size=9, spacing=1
        )
    return sheet


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Judge what the ControlNet of the model `shapes` draws.")
    parser.add_argument("--bundle", type=Path, required=True, help="tests/data/shapes, exported with --ports control")
    parser.add_argument("--control", type=Path, required=True, help="tests/data/shapes-edges, exported")
    parser.add_argument("--count", type=int, default=100, help="edge maps; default: 100")
    parser.add_argument("--seed", type=int, default=8, help="of where objects are; default: 8")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the tables; default: benchmarks/results")
    parser.add_argument("--sheet", type=Path, default=ROOT / "docs" / "shapes-control.png")
    options = parser.parse_args()

    scenes, things = questions(options.count, options.seed)
    maps = [outlines(one) for one in things]
    prompts = [without_shapes(scene.caption()) for scene in scenes]
    seeds = range(len(prompts))
    with Pipeline.load(options.bundle, controls={"edges": options.control}) as pipe:
        drawn = {
            "with": draw(pipe, prompts, seeds, maps=maps),
            "other": draw(pipe, prompts, seeds, maps=maps[1:] + maps[:1]),
            "without": draw(pipe, prompts, seeds),
        }
        backend = pipe.backend
    figures: dict[str, Any] = {"n": len(scenes)}
    for name, pictures in drawn.items():
        verdicts = [right(p, t, s) for p, t, s in zip(pictures, things, scenes, strict=True)]
        covered = [overlap(p, t, s.background) for p, t, s in zip(pictures, things, scenes, strict=True)]
        figures[name] = {"right": round(float(np.mean(verdicts)), 4), "overlap": round(float(np.mean(covered)), 4)}
    figures["outlines"] = overlaps(drawn["with"], scenes)["mean"]
    rows = {"edges": maps, "drawn": drawn["with"], "without\nedges": drawn["without"]}
    contact_sheet({name: p[:SHEET] for name, p in rows.items()}, prompts[:SHEET]).save(options.sheet, optimize=True)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "shapes-control.md").write_text(report(figures, backend))
    (options.out / "shapes-control.json").write_text(json.dumps(figures, indent=1) + "\n")
    print(report(figures, backend))
    print(json.dumps(figures))


def report(figures: dict[str, Any], backend: str) -> str:
    """The text of `shapes-control.md`."""
    names = {"with": "its own", "other": "that of another picture", "without": "none"}
    wanted = {"with": f"≥ {WANTED['with']:.0%}", "other": f"≤ {WANTED['other']:.0%}", "without": ""}
    return "\n".join(
        [
            "# What the model `shapes` draws along outlines",
            "",
            f"{figures['n']} edge maps of unseen scenes; prompts say colours, sizes and background, not what to draw.",
            f"The bundle's defaults, seeds by index, {backend}; judged by `right` in `shapes_control.py`.",
            "",
            "| edge map | shapes, colours, background right | wanted | overlap with the true drawing |",
            "|---|---|---|---|",
            *(
                f"| {text} | {figures[name]['right']:.1%} | {wanted[name]} | {figures[name]['overlap']:.3f} |"
                for name, text in names.items()
            ),
            "",
            f"Outlines of the right pictures, as in [shapes.md](shapes.md): {figures['outlines']:.3f}.",
            "",
        ]
    )


if __name__ == "__main__":
    main()
