"""How well the ControlNet of the model `shapes` steers it: pictures from edge maps, judged by pixels.

    python -m benchmarks.quality.shapes_control --bundle BUNDLE --control CONTROL [--count 100]

Both are exported from `tests/data` (BUNDLE with `--ports control`). Prompts are held-out ones that say "shape" instead
of what to draw, such as "a large red shape on a blue background"; the edge map shows it. Three runs: with its edge map,
with that of another picture, and without one. Writes `shapes-control.md` and `shapes-control.json`, and the contact
sheet `docs/shapes-control.png`. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from benchmarks.common.paths import PROMPTS, RESULTS, ROOT
from benchmarks.shapes.drawings import SIDE, Placed, outlines, placed, render, scene_from_caption, without_shapes
from latentrt.runtime import Pipeline

from .judge import judge
from .outlines import overlaps

PAIRS = 0.4  # share of edge maps with two objects
BATCH = 10
SHEET = 8  # columns of the contact sheet
MARGIN = 8
WANTED = {"with": 0.90, "other": 0.40}
Pictures = list[NDArray[np.uint8]]


def draw(pipe: Pipeline, prompts: Sequence[str], maps: Pictures | None) -> Pictures:
    """One picture (128, 128, 3) for each prompt, steered by its edge map (128, 128); seeds by index."""
    drawn: Pictures = []
    for at in range(0, len(prompts), BATCH):
        these = slice(at, at + BATCH)
        control = (
            {} if maps is None else {"control_image": [Image.fromarray(one).convert("RGB") for one in maps[these]]}
        )
        seeds = list(range(len(prompts))[these])
        drawn.extend(np.asarray(pipe(list(prompts[these]), seed=seeds, output_type="np", **control).images))
    return drawn


def overlap(picture: NDArray[np.uint8], things: Sequence[Placed], background: str) -> float:
    """Intersection over union of what is not background in a picture (h, w, 3) and in the drawing of `things`."""
    wanted = render([things], [background])[0]
    drawn, asked = (np.abs(one.astype(int) - one[0, 0].astype(int)).sum(axis=-1) > 60 for one in (picture, wanted))
    return float((drawn & asked).sum() / max((drawn | asked).sum(), 1))


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

    every = [scene_from_caption(prompt) for prompt in json.loads(PROMPTS.read_text())["prompts"]]
    pairs = round(PAIRS * options.count)
    kinds = (1, options.count - pairs), (2, pairs)
    scenes = [scene for objects, most in kinds for scene in [s for s in every if len(s.objects) == objects][:most]]
    scenes = [scenes[i] for i in np.random.default_rng(options.seed).permutation(len(scenes))]
    rng = np.random.default_rng(options.seed)
    things = [placed(scene, rng) for scene in scenes]
    maps = [outlines(one) for one in things]
    prompts = [without_shapes(scene.caption()) for scene in scenes]
    with Pipeline.load(options.bundle, controls={"edges": options.control}) as pipe:
        drawn = {
            "with": draw(pipe, prompts, maps),
            "other": draw(pipe, prompts, maps[1:] + maps[:1]),
            "without": draw(pipe, prompts, None),
        }
        backend = pipe.backend
    figures: dict[str, Any] = {"n": len(scenes)}
    for name, pictures in drawn.items():
        verdicts = [judge(picture, scene)["all"] for picture, scene in zip(pictures, scenes, strict=True)]
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
            f'{figures["n"]} edge maps of held-out scenes; the prompts say colours, sizes and background, and "shape" '
            "for what is drawn.",
            f"The bundle's defaults, seeds by index, {backend}; judged by `benchmarks/quality/judge.py`.",
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
