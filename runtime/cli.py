"""The command `latentrt`: generate, verify, info; `schedule`, `export` and `build` are loaded when they are called."""

import argparse
import contextlib
import importlib
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .errors import LatentRTError
from .picture_flags import add_picture_flags, picture_options

GENERATE_EXAMPLES = """examples:
  latentrt generate "a large red star on a blue background"
  latentrt generate "an astronaut" --bundle engines/sd15 -o out.png --steps 20 --scheduler dpm++_2m_karras --seed 7
  latentrt generate "a cat" --negative-prompt "blurry" --num-images 4 -o cats.png      # cats-0.png … cats-3.png
  latentrt generate "a castle" --image photo.jpg --mask sky.png --strength 0.8 -o castle.png
"""
# Commands whose modules are loaded when they are called; the exporter needs packages that the runtime does not.
_BY_NAME = {
    "schedule": ("latentrt.runtime.schedule_cli", "timesteps and noise levels of schedulers"),
    "export": ("latentrt.export.cli", "convert a checkpoint to a bundle (needs the extra `export`)"),
    "build": ("latentrt.export.build_cli", "build TensorRT engines for a bundle (needs an extra `tensorrt…`)"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status. Errors of latentrt end in one line on stderr and status 1."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    try:
        parsed = _parser(words).parse_args(words)
        if parsed.verbose:
            logging.getLogger("latentrt").setLevel(logging.INFO)
        status: int = parsed.run(parsed)
        return status
    except LatentRTError as error:
        print(f"latentrt: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("latentrt: interrupted; nothing was left half-written", file=sys.stderr)
        return 130


def _parser(words: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("latentrt", description="Stable Diffusion with ONNX and TensorRT.")
    parser.add_argument("-v", "--verbose", action="store_true", help="say what is loaded and where it runs")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_generate(commands)
    _add_verify(commands)
    _add_info(commands)
    for name, (module, help_text) in _BY_NAME.items():
        if name in words[:2]:
            importlib.import_module(module).add_parser(commands)
        else:
            commands.add_parser(name, help=help_text)
    return parser


def _add_bundle(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--bundle", type=Path, help="the bundle's folder; default: the small model that ships along")
    parser.add_argument("--backend", default="auto", help="auto (default), tensorrt, tensorrt_rtx or onnxruntime")
    parser.add_argument("--device", help="cpu, cuda or cuda:1; default: the best that is found")
    parser.add_argument("--engines", type=Path, metavar="DIR", help="compiled engines, where not in the bundle")
    parser.add_argument("--trust-engines", action="store_true", help="load engines with code for the host, too")


def _add_generate(commands: Any) -> None:
    parser = commands.add_parser(
        "generate",
        help="draw pictures",
        description="Draw pictures of a prompt. What is left out is the bundle's default.",
        epilog=GENERATE_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("prompt")
    _add_bundle(parser)
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
    add_picture_flags(parser)
    parser.set_defaults(run=_generate)


def _generate(arguments: argparse.Namespace) -> int:
    from tqdm import tqdm

    from .image import require_png, save_png
    from .pipeline import Pipeline

    out: Path = arguments.out
    require_png(out)
    with contextlib.ExitStack() as stack:
        pipe = stack.enter_context(_load(Pipeline, arguments))
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
            **picture_options(arguments),
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


def _load(pipeline: Any, arguments: argparse.Namespace) -> Any:
    return pipeline.load(
        arguments.bundle,
        backend=arguments.backend,
        device=arguments.device,
        engines=arguments.engines,
        trust_engines=arguments.trust_engines,
    )


def _add_verify(commands: Any) -> None:
    parser = commands.add_parser(
        "verify",
        help="prove that a bundle is whole and draws what it should",
        description="Check all hashes, then replay the golden outputs on a backend. Exit status 1 where either fails.",
    )
    _add_bundle(parser)
    parser.add_argument("path", type=Path, nargs="?", help="the bundle's folder, same as --bundle")
    parser.add_argument("--hashes-only", action="store_true", help="do not draw")
    parser.set_defaults(run=_verify)


def _verify(arguments: argparse.Namespace) -> int:
    from tqdm import tqdm

    from .bundle import Bundle
    from .pipeline import Pipeline, embedded_bundle
    from .verify import verify_goldens

    arguments.bundle = arguments.path or arguments.bundle or embedded_bundle()
    bundle = Bundle.open(arguments.bundle)
    files = bundle.manifest.files
    total = sum(file.size for file in files.values())
    with tqdm(total=total, disable=None, unit="B", unit_scale=True, desc="hashes") as bar:
        altered = bundle.altered_files(bar.update)
    if altered:
        print(f"{bundle.path}: altered: {', '.join(altered)}. Copy the bundle again, or export it again.")
        return 1
    print(f"{bundle.path}: {len(files)} files, {total / 2**20:,.1f} MiB, all hashes agree")
    if arguments.hashes_only:
        return 0
    with _load(Pipeline, arguments) as pipe:
        checks = verify_goldens(pipe)
        for check in checks:
            print(f"  {'ok  ' if check.passed else 'FAIL'} {check.name}: {check.text}")
    print(f"{bundle.path}: {'reproduces its goldens' if all(c.passed for c in checks) else 'WRONG'} on {pipe.backend}")
    return 0 if all(check.passed for check in checks) else 1


def _add_info(commands: Any) -> None:
    parser = commands.add_parser(
        "info", help="what a bundle holds", description="Graphs, sizes and engines of a bundle."
    )
    parser.add_argument("path", type=Path, nargs="?", help="default: the small model that ships along")
    parser.set_defaults(run=_info)


def _info(arguments: argparse.Namespace) -> int:
    from .bundle import Bundle
    from .engine_choice import sizes_text
    from .pipeline import embedded_bundle

    bundle = Bundle.open(arguments.path or embedded_bundle())
    manifest = bundle.manifest
    model, recipe, defaults = manifest.model, manifest.recipe, manifest.defaults
    print(
        f"{bundle.path}: {manifest.checkpoint.name} ({model.family}, {model.prediction_type}), {recipe.precision}"
        + (f", VAE {recipe.vae_precision}" if recipe.vae_precision != recipe.precision else "")
    )
    print(f"checkpoint  sha256 {manifest.checkpoint.sha256[:16]}…, exported by latentrt {manifest.producer.latentrt}")
    print(
        f"defaults    {defaults.width}x{defaults.height}, {defaults.num_inference_steps} steps, guidance "
        f"{defaults.guidance_scale:g}, {bundle.read_json(manifest.scheduler).get('_class_name')}"
    )
    print(f"\n{'graph':14} {'MiB':>9}  {'outputs'}")
    for name, graph in manifest.graphs.items():
        size = sum(f.size for path, f in manifest.files.items() if path in (graph.file, f"{graph.file}.data"))
        outputs = [f"{o.name} {o.dtype} ({', '.join(map(str, o.shape))})" for o in graph.outputs]
        more = f" and {len(outputs) - 2} more" if len(outputs) > 2 else ""
        print(f"{name:14} {size / 2**20:9,.1f}  {', '.join(outputs[:2])}{more}")
    print(f"\nengines: {len(manifest.engines) or 'none; the graphs run on ONNX Runtime'}")
    for engine in manifest.engines:
        gpus = engine.device or f"compute capability {', '.join(engine.compute_capabilities)}"
        print(f"  {engine.graph:14} {sizes_text(engine):32} {engine.backend} {engine.version}, {gpus}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
