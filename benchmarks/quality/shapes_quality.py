"""How well the embedded model follows prompts, judged by pixels, and whether its options have their effects.

    python -m benchmarks.quality.shapes_quality [--bundle engines/shapes] [--seeds 3] [--out benchmarks/results]

Draws the 300 held-out prompts with the bundle's defaults, with three seeds each. Then measures how true the outlines
are, whether other seeds give other pictures, whether a higher guidance scale follows the prompt better, and whether a
negative prompt removes a colour.
Writes the tables `shapes.md` and `shapes.json`, and the contact sheet `shapes.png`. The last line is JSON.
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
from tqdm import tqdm

from benchmarks.common.paths import PROMPTS, RESULTS, ROOT
from benchmarks.shapes.drawings import COLOURS, SHAPES, scene_from_caption
from latentrt.runtime import Pipeline

from .judge import accuracies, background_of, confusion, regions_of
from .outlines import overlaps, reconstructed

BATCH = 10
SHEET = 12  # pictures of one object on the contact sheet, and as many of two
CELL = 150  # width in pixels of a picture with its margins
Pictures = list[NDArray[np.uint8]]
TARGETS = {"single/all": 0.98, "double/all": 0.85}


def draw(
    pipe: Pipeline, prompts: Sequence[str], seeds: Sequence[int], *, maps: Pictures | None = None, **options: Any
) -> Pictures:
    """One picture (h, w, 3) for each prompt and its seed, steered by its edge map (h, w) where `maps` are given."""
    pictures: Pictures = []
    steering = maps and [Image.fromarray(one).convert("RGB") for one in maps]
    for at in tqdm(range(0, len(prompts), BATCH), disable=None, leave=False):
        these = slice(at, at + BATCH)
        control = {"control_image": steering[these]} if steering else {}
        result = pipe(list(prompts[these]), seed=list(seeds[these]), output_type="np", **control, **options)
        pictures.extend(np.asarray(result.images))
    return pictures


def difference_of_seeds(pipe: Pipeline, prompt: str) -> float:
    """Smallest mean difference between any two pictures of eight seeds, in levels of 255."""
    pictures = np.stack(draw(pipe, [prompt] * 8, range(8))).astype(np.float32)
    return float(min(np.abs(a - b).mean() for i, a in enumerate(pictures) for b in pictures[:i]))


def guidance(pipe: Pipeline, prompts: Sequence[str]) -> dict[str, float]:
    """Share of right pictures without guidance, with some, and with much."""
    scales = (1.0, 4.0, 8.0)
    return {
        f"{scale:g}": accuracies(lambda p, s=scale: draw(pipe, p, range(len(p)), guidance_scale=s), prompts)[
            "single/all"
        ]
        for scale in scales
    }


def share_of_red(pipe: Pipeline, negative: str) -> float:
    """How often an object is red if the prompt does not name its colour."""
    prompts = [f"a large {shape} on a {ground} background" for shape in SHAPES for ground in COLOURS if ground != "red"]
    pictures = draw(pipe, prompts * 2, range(2 * len(prompts)), negative_prompt=negative)
    found = [regions_of(picture, background_of(picture)) for picture in pictures]
    return sum(any(region.colour == "red" for region in regions) for regions in found) / len(found)


def contact_sheet(pictures: Pictures, captions: Sequence[str], columns: int = 6) -> Image.Image:
    """Rows of pictures, each with its caption below."""
    rows = -(-len(pictures) // columns)
    height = CELL + 24
    sheet = Image.new("RGB", (columns * CELL, rows * height), "white")
    pen = ImageDraw.Draw(sheet)
    for i, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        x, y = i % columns * CELL + 11, i // columns * height + 4
        sheet.paste(Image.fromarray(picture), (x, y))
        for line, text in enumerate(_wrapped(caption, 26)[:3]):
            pen.text((x, y + picture.shape[0] + 2 + 11 * line), text, fill="black", font_size=9)
    return sheet


def _wrapped(text: str, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        joined = f"{lines[-1]} {word}".strip()
        lines = [*lines[:-1], joined] if len(joined) <= width else [*lines, word]
    return lines


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Judge what the embedded model draws.")
    parser.add_argument("--bundle", type=Path, help="default: the embedded model")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of each prompt; default: 3")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the tables; default: benchmarks/results")
    parser.add_argument("--sheet", type=Path, default=ROOT / "docs" / "shapes.png", help="default: docs/shapes.png")
    options = parser.parse_args()
    prompts: list[str] = json.loads(PROMPTS.read_text())["prompts"]
    singles = [prompt for prompt in prompts if len(scene_from_caption(prompt).objects) == 1]
    doubles = [prompt for prompt in prompts if prompt not in singles]

    with Pipeline.load(options.bundle) as pipe:
        every = prompts * options.seeds
        pictures = draw(pipe, every, range(len(every)))
        scenes = [scene_from_caption(prompt) for prompt in every]
        right = accuracies(lambda _: pictures, every)
        table = confusion(pictures, scenes)
        drawn, decoded = reconstructed(pipe, scenes[: len(prompts)])
        figures: dict[str, Any] = {
            **right,
            "overlap": {
                "drawn": overlaps(pictures, scenes),
                "autoencoder": overlaps(decoded, scenes[: len(prompts)]),
                "template": overlaps(drawn, scenes[: len(prompts)]),
            },
            "guidance": guidance(pipe, singles[:40]),
            "seeds": round(difference_of_seeds(pipe, singles[0]), 2),
            "red": {name or "none": round(share_of_red(pipe, name), 4) for name in ("", "red")},
        }
        backend = pipe.backend
    chosen = [*range(SHEET), *(len(singles) + i for i in range(SHEET))]
    ordered = singles + doubles
    contact_sheet([pictures[prompts.index(ordered[i])] for i in chosen], [ordered[i] for i in chosen]).save(
        options.sheet, optimize=True
    )
    options.out.mkdir(parents=True, exist_ok=True)
    text = report(figures, table, backend)
    (options.out / "shapes.md").write_text(text)
    (options.out / "shapes.json").write_text(json.dumps(figures, indent=1) + "\n")
    print(text)
    print(json.dumps(figures))


def report(figures: dict[str, Any], table: str, backend: str) -> str:
    """The text of `shapes.md`."""
    kinds = (("single", "one object"), ("double", "two objects"))
    keys = ("shape", "colour", "background", "all", "size")
    lines = [
        "# What the model `shapes` draws",
        "",
        f"Held-out prompts, the bundle's defaults, seeds by index, {backend}; judged by `benchmarks/quality/judge.py`.",
        "",
        "| | n | shape | colour | background | all three | wanted | size |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for kind, name in kinds:
        shares = [f"{figures[f'{kind}/{key}']:.1%}" for key in keys]
        wanted = f"{TARGETS[f'{kind}/all']:.0%}"
        lines.append(f"| {name} | {figures[f'{kind}/n']} | {' | '.join([*shares[:4], wanted, shares[4]])} |")
    scales = ", ".join(f"{share:.1%} at {scale}" for scale, share in figures["guidance"].items())
    lines += [
        "",
        "Shape asked for (rows) and seen (columns), one object:",
        "",
        "```",
        table,
        "```",
        "",
        "Outlines: intersection over union with the best template, of the right pictures; of true drawings that the",
        "autoencoder encodes and decodes, which bounds it; and of true drawings, bounded by the judge's grid.",
        "",
        "| | " + " | ".join(figures["overlap"]["drawn"]) + " |",
        "|---" * (1 + len(figures["overlap"]["drawn"])) + "|",
        *(
            f"| {name} | " + " | ".join(f"{value:.3f}" for value in row.values()) + " |"
            for name, row in figures["overlap"].items()
        ),
        "",
        f"- Guidance scale (40 prompts): all three right {scales}.",
        f"- Seeds: any two of eight pictures of one prompt differ by {figures['seeds']:.1f} of 255 or more on average.",
        f'- Negative prompt: objects of no stated colour come out red in {figures["red"]["none"]:.1%}; with "red" as '
        f"negative prompt in {figures['red']['red']:.1%} (84 pictures).",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
