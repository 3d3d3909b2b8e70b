"""`latentrt generate`: a prompt on the command line, or a file of jobs, becomes PNG files."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentrt.runtime.errors import InputError
from latentrt.runtime.image import require_png, save_npy, save_png
from latentrt.runtime.request.options import LONG_PROMPTS
from latentrt.runtime.text.prompt import SYNTAXES
from latentrt.runtime.weights.lora import file_and_weight

from .flags import add_bundle_flags, load_pipeline
from .jobs import lines_of_file, numbered, run_jobs
from .picture_flags import add_picture_flags, picture_options

if TYPE_CHECKING:
    from latentrt.runtime.pipeline import Pipeline

EXAMPLES = """examples:
  latentrt generate "a large red star on a blue background"
  latentrt generate "an astronaut" --bundle engines/sd15 -o out.png --steps 20 --scheduler dpm++_2m_karras --seed 7
  latentrt generate "a cat" --negative-prompt "blurry" --num-images 4 -o cats.png      # cats-0.png … cats-3.png
  latentrt generate "a castle" --image photo.jpg --mask sky.png --strength 0.8 -o castle.png
  latentrt generate "a (red:1.3) star, [clouds]" --prompt-syntax web-ui
  latentrt generate "$(cat long.txt)" --long-prompt chunk
  latentrt generate --jobs jobs.jsonl --steps 20 -o pictures/cat.png     # pictures/cat-0001.png is line 1's
  make-jobs | latentrt generate --jobs -

a line of jobs.jsonl, with options as in Python; flags are for lines that do not say otherwise:
  {"prompt": "a cat", "negative_prompt": "blurry", "seed": 7, "num_inference_steps": 30, "out": "cat.png"}
"""
# Flag -> the option of `Pipeline.__call__` that it is.
_OPTIONS = {
    "negative_prompt": "negative_prompt",
    "prompt_2": "prompt_2",
    "negative_prompt_2": "negative_prompt_2",
    "prompt_syntax": "prompt_syntax",
    "long_prompt": "long_prompt",
    "steps": "num_inference_steps",
    "guidance_scale": "guidance_scale",
    "guidance_rescale": "guidance_rescale",
    "scheduler": "scheduler",
    "eta": "eta",
    "height": "height",
    "width": "width",
    "seed": "seed",
    "num_images": "num_images_per_prompt",
    "clip_skip": "clip_skip",
    "rng": "rng",
    "latents": "latents",
}


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "generate",
        help="draw pictures",
        description="Draw pictures of a prompt. What is left out is the bundle's default.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("prompt", nargs="?", help="what to draw")
    parser.add_argument("--jobs", type=Path, metavar="FILE", help="draw each line of a JSONL file; - reads stdin")
    add_bundle_flags(parser)
    parser.add_argument("-o", "--out", type=Path, default=Path("out.png"), help="PNG file; default: out.png")
    parser.add_argument("--negative-prompt", help="what to move away from")
    parser.add_argument("--prompt-2", help="text for the second text encoder (SDXL); default: the prompt")
    parser.add_argument("--negative-prompt-2", help="the same for the negative prompt")
    parser.add_argument(
        "--prompt-syntax",
        choices=SYNTAXES,
        help="plain (default): brackets are text; web-ui: (word:1.2), ((word)), [word], \\( and BREAK",
    )
    parser.add_argument(
        "--long-prompt",
        choices=LONG_PROMPTS,
        help="truncate (default): use the first 75 tokens; chunk: use all, 75 at a time",
    )
    parser.add_argument("--steps", type=int, help="number of inference steps")
    parser.add_argument("--guidance-scale", type=float, help="strength of the prompt; 1 is off")
    parser.add_argument("--guidance-rescale", type=float, help="0 to 1, pulls the contrast back")
    parser.add_argument("--scheduler", help="such as euler_a or dpm++_2m_karras")
    parser.add_argument("--eta", type=float, help="noise of ddim and tcd, 0 to 1")
    parser.add_argument("--height", type=int, help="pixels, a multiple of 8")
    parser.add_argument("--width", type=int, help="pixels, a multiple of 8")
    parser.add_argument("--seed", type=int, help="of the first image; the others count on. Default: a random one")
    parser.add_argument("--rng", choices=("cpu", "cuda"), help="whose noise a seed gives in PyTorch; default: cpu")
    parser.add_argument("--num-images", type=int, help="images, drawn in one batch; default: 1")
    parser.add_argument(
        "--lora",
        action="append",
        default=[],
        metavar="FILE[:WEIGHT]",
        help="LoRA file, weight 1 if not said; repeatable",
    )
    parser.add_argument("--clip-skip", type=int, help="layers of the text encoder to skip")
    parser.add_argument("--latents", metavar="FILE.npy", help="noise to start from, instead of the seed's")
    parser.add_argument("--save-latents", type=Path, metavar="FILE.npy", help="write the latents, too, for --image")
    add_picture_flags(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    if (arguments.prompt is None) == (arguments.jobs is None):
        raise InputError("pass either a prompt or --jobs FILE")
    require_png(arguments.out)
    if arguments.save_latents and (arguments.jobs or arguments.save_latents.suffix != ".npy"):
        raise InputError(f"--save-latents {arguments.save_latents} is one .npy file for one prompt, not for --jobs")
    lines = None if arguments.jobs is None else lines_of_file(arguments.jobs)
    given = {option: getattr(arguments, flag) for flag, option in _OPTIONS.items()}
    options = {option: value for option, value in given.items() if value is not None} | picture_options(arguments)
    with load_pipeline(arguments) as pipe:
        if arguments.lora:
            pipe.set_loras(dict(map(file_and_weight, arguments.lora)))
        if lines is not None:
            return run_jobs(pipe, lines, options, arguments.out)
        return _draw(pipe, arguments.prompt, options, arguments.out, arguments.save_latents)


def _draw(pipe: "Pipeline", prompt: str, options: dict[str, Any], out: Path, latents: Path | None) -> int:
    from tqdm import tqdm

    result = None
    with tqdm(disable=None, unit="call") as bar:
        for step in pipe.stream(prompt, **options):
            bar.total = step.total
            bar.update()
            result = step.result
    assert result is not None
    if latents is not None:
        save_npy(result.latents, latents)
    for file, image, seed in zip(numbered(out, len(result.images)), result.images, result.seeds, strict=True):
        save_png(image, file)
        print(f"{file} (seed {seed}, {result.timings['total'] / 1000:.2f} s on {pipe.backend})")
    return 0
