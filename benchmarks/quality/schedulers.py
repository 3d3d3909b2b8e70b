"""Every scheduler on the embedded model: how well it draws in 20 steps, and how long a plan takes to compile.

    python -m benchmarks.quality.schedulers [--bundle engines/shapes] [--prompts 24] [--out docs/schedulers.png]

All schedulers get the same prompts and seeds. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from PIL import Image, ImageDraw

from benchmarks.common.paths import PROMPTS, ROOT
from latentrt.runtime import Pipeline, Plan, SchedulerError
from latentrt.runtime.scheduler import resolve
from latentrt.runtime.scheduler.naming import short_names

from .judge import accuracies
from .shapes_quality import Pictures, draw

STEPS = 20
SHOWN = 6  # pictures of each scheduler on the sheet
LABEL = 190  # width of a label in pixels
COMPILE_LIMIT_MS = 50.0


def names_to_draw() -> list[str]:
    """Short names without a suffix for sigmas, and the two schedulers that are most used with Karras sigmas."""
    return [*(name for name in short_names() if not name.startswith("flow")), "dpm++_2m_karras", "dpm2_a_karras"]


def compile_ms(name: str, config: dict[str, object], steps: int) -> float:
    """The fastest of five compilations, each with another beta_end, so that none is cached."""
    seconds = []
    for i in range(5):
        changed = resolve(name, config | {"beta_end": 0.0121 + 1e-5 * i, "rescale_betas_zero_snr": False})
        start = time.perf_counter()
        Plan.from_config(changed, steps)
        seconds.append(time.perf_counter() - start)
    return 1000 * min(seconds)


def sheet(rows: dict[str, tuple[Pictures, str]]) -> Image.Image:
    """A row of pictures for each scheduler, with its name and figures on the left."""
    side = next(iter(rows.values()))[0][0].shape[0]
    image = Image.new("RGB", (LABEL + SHOWN * (side + 4), len(rows) * (side + 4)), "white")
    pen = ImageDraw.Draw(image)
    for row, (name, (pictures, text)) in enumerate(rows.items()):
        y = row * (side + 4)
        pen.text((8, y + side // 2 - 20), name, fill="black", font_size=18)
        pen.text((8, y + side // 2 + 4), text, fill="black", font_size=12)
        for column, picture in enumerate(pictures[:SHOWN]):
            image.paste(Image.fromarray(picture), (LABEL + column * (side + 4), y))
    return image


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Draw with every scheduler.")
    parser.add_argument("--bundle", type=Path, help="default: the embedded model")
    parser.add_argument("--prompts", type=int, default=24, help="held-out prompts of one object; default: 24")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "schedulers.png", help="the sheet")
    options = parser.parse_args()
    prompts = json.loads(PROMPTS.read_text())["prompts"][: options.prompts]
    rows: dict[str, tuple[Pictures, str]] = {}
    figures: dict[str, dict[str, float | None]] = {}
    with Pipeline.load(options.bundle) as pipe:
        config = pipe.bundle.read_json(pipe.bundle.manifest.scheduler)
        print(f"{'scheduler':18} {'calls':>5} {'shape':>7} {'colour':>7} {'ground':>7} {'all':>7} {'50-step plan':>13}")
        for name in names_to_draw():
            try:
                plan = Plan.from_config(resolve(name, config), STEPS)
            except SchedulerError as error:
                print(f"{name:18} {error}")
                continue
            pictures = draw(pipe, prompts, range(len(prompts)), scheduler=plan)
            right = accuracies(lambda _, p=pictures: p, prompts)
            shares = [right[f"single/{key}"] for key in ("shape", "colour", "background", "all")]
            milliseconds = compile_ms(name, config, 50)
            rows[name] = pictures, f"{len(plan)} calls, {shares[-1]:.0%} right"
            figures[name] = {"all": shares[-1], "compile_ms": round(milliseconds, 1)}
            cells = " ".join(f"{share:7.1%}" for share in shares)
            print(f"{name:18} {len(plan):5} {cells} {milliseconds:10.1f} ms", flush=True)
    # With a palette, which flat colours do not show, the file is half as large.
    sheet(rows).quantize(255, dither=Image.Dither.NONE).save(options.out, optimize=True)
    slowest = max(row["compile_ms"] or 0.0 for row in figures.values())
    print(f"slowest 50-step plan: {slowest:.1f} ms (limit {COMPILE_LIMIT_MS:g} ms); pictures in {options.out}")
    print(json.dumps({"n": len(prompts), "steps": STEPS, "schedulers": figures}))


if __name__ == "__main__":
    main()
