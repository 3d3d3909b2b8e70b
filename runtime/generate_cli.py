"""`latentrt generate`: a prompt on the command line becomes PNG files."""

import argparse
import contextlib
from pathlib import Path
from typing import Any

from .bundle_flags import add_bundle_flags, load_pipeline

EXAMPLES = """examples:
  latentrt generate "a large red star on a blue background"
  latentrt generate "an astronaut" --bundle engines/sd15 -o out.png --steps 20 --scheduler dpm++_2m_karras --seed 7
  latentrt generate "a cat" --negative-prompt "blurry" --num-images 4 -o cats.png      # cats-0.png … cats-3.png
"""


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "generate",
        help="draw pictures",
        description="Draw pictures of a prompt. What is left out is the bundle's default.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("prompt")
    add_bundle_flags(parser)
    parser.add_argument("-o", "--out", type=Path, default=Path("out.png"), help="PNG file; default: out.png")
    parser.add_argument("--negative-prompt", default="", help="what to move away from")
    parser.add_argument("--steps", type=int, help="number of inference steps")
    parser.add_argument("--guidance-scale", type=float, help="strength of the prompt; 1 is off")
    parser.add_argument("--guidance-rescale", type=float, help="0 to 1, pulls the contrast back")
    parser.add_argument("--scheduler", help="such as euler_a or dpm++_2m_karras")
    parser.add_argument("--eta", type=float, help="noise of ddim and tcd, 0 to 1")
    parser.add_argument("--height", type=int, help="pixels, a multiple of 8")
    parser.add_argument("--width", type=int, help="pixels, a multiple of 8")
    parser.add_argument("--seed", type=int, help="of the first image; the others count on. Default: a random one")
    parser.add_argument("--rng", choices=("cpu", "cuda"), help="whose noise a seed gives in PyTorch; default: cpu")
    parser.add_argument("--num-images", type=int, default=1, help="images, drawn in one batch")
    parser.add_argument(
        "--lora",
        action="append",
        default=[],
        metavar="FILE[:WEIGHT]",
        help="LoRA file, weight 1 if not said; repeatable",
    )
    parser.add_argument("--clip-skip", type=int, help="layers of the text encoder to skip")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from tqdm import tqdm

    from .image import require_png, save_png

    out: Path = arguments.out
    require_png(out)
    with contextlib.ExitStack() as stack:
        pipe = stack.enter_context(load_pipeline(arguments))
        if arguments.lora:
            pipe.set_loras(dict(map(_lora, arguments.lora)))
        steps = pipe.stream(
            arguments.prompt,
            negative_prompt=arguments.negative_prompt,
            num_inference_steps=arguments.steps,
            guidance_scale=arguments.guidance_scale,
            guidance_rescale=arguments.guidance_rescale,
            scheduler=arguments.scheduler,
            eta=arguments.eta,
            height=arguments.height,
            width=arguments.width,
            seed=arguments.seed,
            num_images_per_prompt=arguments.num_images,
            clip_skip=arguments.clip_skip,
            rng=arguments.rng,
        )
        bar = stack.enter_context(tqdm(disable=None, unit="call"))
        result = None
        for step in steps:
            bar.total = step.total
            bar.update()
            result = step.result
    assert result is not None
    several = len(result.images) > 1
    for i, image in enumerate(result.images):
        file = out.with_stem(f"{out.stem}-{i}") if several else out
        save_png(image, file)
        print(f"{file} (seed {result.seeds[i]}, {result.timings['total'] / 1000:.2f} s on {pipe.backend})")
    return 0


def _lora(text: str) -> tuple[str, float]:
    """ "style.safetensors:0.8" is a file and its weight."""
    path, colon, weight = text.rpartition(":")
    try:
        return (path, float(weight)) if colon else (text, 1.0)
    except ValueError:
        return text, 1.0  # a path with a colon
