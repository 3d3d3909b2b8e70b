"""`latentrt generate`: a prompt on the command line, or a file of jobs, becomes PNG files."""

import argparse
import importlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentrt.runtime.errors import InputError, unknown
from latentrt.runtime.image import require_place, require_png, save_npy, save_or_keep, save_png
from latentrt.runtime.jobs import lines_of_source, numbered
from latentrt.runtime.latents import PREVIEWS
from latentrt.runtime.request.options import flag_of
from latentrt.runtime.request.recorded import Recorded, recorded_in, require_unchanged
from latentrt.runtime.weights import file_and_weight, sha256_of_lora

from .flags import add_bundle_flags, add_option_flags, given_options, load_pipeline
from .jobs import run_jobs

if TYPE_CHECKING:
    from latentrt.runtime.drawing import Result
    from latentrt.runtime.pipeline import Pipeline

logger = logging.getLogger(__name__)

EXAMPLES = """examples:
  latentrt generate "a large red star on a blue background"
  latentrt generate "an astronaut" --bundle engines/sd15 -o out.png --steps 20 --scheduler dpm++_2m_karras --seed 7
  latentrt generate "a cat" --negative-prompt "blurry" --num-images 4 -o cats.png      # cats-0.png … cats-3.png
  latentrt generate "a castle" --image photo.jpg --mask sky.png --strength 0.8 -o castle.png
  latentrt generate "a lion" --bundle engines/sdxl --refiner engines/sdxl-refiner --refiner-start 0.8 -o lion.png
  latentrt generate "a lion" --bundle engines/sd15 --hires-scale 2 --hires-strength 0.6 -o large.png
  latentrt generate "a (red:1.3) star, [clouds]" --prompt-syntax web-ui
  latentrt generate "$(cat long.txt)" --long-prompt chunk
  latentrt generate --like out.png --seed 8 -o other.png                 # out.png again, but for its seed
  latentrt generate --jobs jobs.jsonl --steps 20 -o pictures/cat.png     # pictures/cat-0001.png is line 1's
  make-jobs | latentrt generate --jobs -
  latentrt generate --jobs s3://b/jobs.parquet --ray auto -o s3://b/pictures/cat.png      # on a Ray cluster

a line of jobs.jsonl, with options as in Python; flags are for lines that do not say otherwise:
  {"prompt": "a cat", "negative_prompt": "blurry", "seed": 7, "num_inference_steps": 30, "out": "cat.png"}
"""


def add_parser(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "generate",
        help="draw pictures",
        description="Draw pictures of a prompt. What is left out is the bundle's default.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("prompt", nargs="?", help="what to draw")
    parser.add_argument(
        "--jobs", metavar="FILE", help="draw each line of a JSONL file or row of a Parquet file; - reads stdin"
    )
    parser.add_argument(
        "--ray",
        nargs="?",
        const="",
        metavar="ADDRESS",
        help="draw the jobs on a Ray cluster, but for those that are finished; default: the cluster of RAY_ADDRESS, "
        "one that runs here, or one that is started for the jobs (needs the extra `ray`)",
    )
    parser.add_argument(
        "--ray-actors", type=int, metavar="N", help="pipelines of the cluster; default: one a GPU, or one a machine"
    )
    parser.add_argument(
        "--ray-batch", type=int, metavar="N", help="similar jobs that are drawn in one call, 1 by default"
    )
    parser.add_argument(
        "--like",
        type=Path,
        metavar="FILE.png",
        help="draw a picture of latentrt or of a web UI again, with the options given beside it",
    )
    add_bundle_flags(parser)
    parser.add_argument(
        "--refiner", type=Path, metavar="DIR", help="bundle of a refiner, which goes on from --refiner-start"
    )
    parser.add_argument("-o", "--out", default="out.png", help="PNG file, or a URL with --ray; default: out.png")
    parser.add_argument(
        "--lora",
        action="append",
        default=[],
        metavar="FILE[:WEIGHT]",
        help="LoRA file and its weight, 1 by default; repeatable",
    )
    parser.add_argument(
        "--preview",
        nargs="?",
        const="auto",
        metavar="{" + ",".join(PREVIEWS) + "}",
        help="keep out.preview.png up to date while the picture is drawn: rgb is fast, taesd is sharper, vae is exact; "
        "default: taesd or rgb where the bundle has it",
    )
    parser.add_argument("--save-latents", type=Path, metavar="FILE.npy", help="write the latents too, for --image")
    add_option_flags(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Draw what the arguments ask for; returns the exit status."""
    if arguments.ray is not None:
        return _run_on_ray(arguments)
    arguments.out = _local(arguments.out)
    _check_combinations(arguments)
    options = given_options(arguments)
    if arguments.jobs is not None:
        lines = lines_of_source(arguments.jobs)
        with load_pipeline(arguments) as pipe:
            _set_loras(pipe, arguments, None)
            return run_jobs(pipe, lines, options, arguments.out)
    if arguments.prompt is not None:
        options["prompt"] = arguments.prompt
    recorded = None if arguments.like is None else recorded_in(arguments.like, options)
    with load_pipeline(arguments) as pipe:
        _set_loras(pipe, arguments, recorded)
        result = _drawn(pipe, options if recorded is None else recorded.options, arguments.out, arguments.preview)
        problems: list[str] = []
        files = numbered(arguments.out, len(result.images))
        done: list[str] = []
        for file, image, seed in zip(files, result.images, result.seeds, strict=True):
            try:
                save_or_keep(image, file)
                done.append(f"{file} (seed {seed}, {result.timings['total'] / 1000:.2f} s on {pipe.backend})")
            except InputError as error:  # the other images must not be lost
                problems.append(str(error))
        if arguments.save_latents is not None:
            save_npy(result.latents, arguments.save_latents)
    print("\n".join(done))
    if problems:
        raise InputError("; ".join(problems))
    return 0


def _run_on_ray(arguments: argparse.Namespace) -> int:
    """Hand the jobs to `latentrt.serve`, which the runtime knows by name alone."""
    if arguments.jobs is None:
        raise InputError("--ray draws jobs on a cluster: pass --jobs FILE")
    for flag in ("prompt", "like", "preview", "save_latents", "refiner"):
        if getattr(arguments, flag) is not None:
            raise InputError(f"{'a prompt' if flag == 'prompt' else flag_of(flag)} cannot be combined with --ray")
    status: int = importlib.import_module("latentrt.serve.batch.command").run(
        arguments.jobs,
        arguments.out,
        given_options(arguments),
        model={
            **{name: getattr(arguments, name) for name in ("bundle", "backend", "device", "engines", "trust_engines")},
            "loras": _given_loras(arguments),
        },
        address=arguments.ray or None,
        actors=arguments.ray_actors,
        batch=1 if arguments.ray_batch is None else arguments.ray_batch,
    )
    return status


def _local(out: str) -> Path:
    if "://" in out:
        raise InputError(f"-o {out}: without --ray, pictures are written to files of this machine")
    return Path(out)


def _check_combinations(arguments: argparse.Namespace) -> None:
    if (arguments.ray_actors, arguments.ray_batch) != (None, None):
        raise InputError("--ray-actors and --ray-batch are for --ray")
    if arguments.preview not in (None, *PREVIEWS):
        if arguments.prompt is not None:
            raise InputError(unknown("preview", arguments.preview, PREVIEWS))
        arguments.prompt, arguments.preview = arguments.preview, "auto"  # --preview "a prompt"
    sources = [arguments.prompt is not None or arguments.like is not None, arguments.jobs is not None]
    if arguments.preview is not None and arguments.jobs is not None:
        raise InputError("--preview shows one call, not --jobs")
    if sum(sources) != 1:
        raise InputError("pass either a prompt, --like FILE.png (and a prompt, to change it) or --jobs FILE")
    require_png(arguments.out)
    if arguments.save_latents and (arguments.jobs or arguments.save_latents.suffix != ".npy"):
        raise InputError(f"--save-latents {arguments.save_latents}: expected one .npy file, and not with --jobs")
    if arguments.jobs is None:
        require_place(numbered(arguments.out, min(arguments.num_images_per_prompt or 1, 2))[-1])
    if arguments.save_latents:
        require_place(arguments.save_latents)


def _set_loras(pipe: "Pipeline", arguments: argparse.Namespace, recorded: Recorded | None) -> None:
    """The LoRAs of --lora, else those that a picture was drawn with."""
    if arguments.lora:
        pipe.set_loras(_given_loras(arguments))
        return
    if recorded is None:
        return
    if not (pipe.bundle.manifest.checkpoint.sha256 or "").startswith(recorded.model_sha256):
        logger.warning(
            "%s was drawn with %s (sha256 %s…), and this bundle holds %s: the picture will be another",
            *(arguments.like, recorded.model, recorded.model_sha256[:16], pipe.bundle.manifest.checkpoint.name),
        )
    _check_refiner(pipe, arguments.like, recorded)
    if recorded.options.get("long_prompt") == "chunk":
        logger.warning(
            "%s was drawn with long_prompt='chunk': if another text of its call was longer, it was padded to that "
            "length, and the new image differs",
            arguments.like,
        )
    for lora in recorded.loras:
        require_unchanged(lora, arguments.like, sha256_of_lora)
    if recorded.loras:
        pipe.set_loras({lora.path: lora.weight for lora in recorded.loras})


def _check_refiner(pipe: "Pipeline", picture: Path, recorded: Recorded) -> None:
    """Raise `InputError` where a picture was refined and there is no refiner; warn of another one."""
    if not recorded.refiner:
        return
    wanted = f"{recorded.refiner} (sha256 {recorded.refiner_sha256[:16]}…)"
    if pipe.refiner is None:
        raise InputError(
            f"{picture} was refined with {wanted}: pass its bundle with --refiner, or --refiner-start 1 to leave it out"
        )
    if pipe.refiner.manifest.checkpoint.sha256 != recorded.refiner_sha256:
        name = pipe.refiner.manifest.checkpoint.name
        logger.warning("%s was refined with %s, and not with %s: the picture will be another", picture, wanted, name)


def _given_loras(arguments: argparse.Namespace) -> dict[Path | str, float]:
    loras = list(map(file_and_weight, arguments.lora))
    if len(dict(loras)) < len(loras):
        raise InputError("--lora names a file twice: pass each LoRA once, with the sum of its weights")
    return dict(loras)


def _drawn(pipe: "Pipeline", options: dict[str, Any], out: Path, preview: str | None) -> "Result":
    """The pictures, with a progress bar, and with previews beside `out` until they are finished."""
    from tqdm import tqdm

    result, shown = None, set()
    try:
        with tqdm(disable=None, unit="call") as bar:
            for step in pipe.stream(**options):
                bar.total = step.total
                bar.update()
                result = step.result
                if preview is not None and result is None:
                    images = step.preview(preview)
                    files = [file.with_suffix(".preview.png") for file in numbered(out, len(images))]
                    if taken := [file for file in files if file.exists() and file not in shown]:
                        raise InputError(f"{taken[0]} exists: move it, or draw without --preview")
                    shown.update(files)
                    for file, image in zip(files, images, strict=True):
                        save_png(image, file)
    finally:
        for file in shown:
            file.unlink(missing_ok=True)
    assert result is not None
    return result
