"""The command `latentrt`: verify and info; the other commands are loaded when they are called."""

import argparse
import importlib
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .bundle_flags import add_bundle_flags, load_pipeline
from .errors import LatentRTError

# Commands whose modules are loaded when they are called; the exporter needs packages that the runtime does not.
_BY_NAME = {
    "generate": ("latentrt.runtime.generate_cli", "draw pictures"),
    "schedule": ("latentrt.runtime.schedule_cli", "timesteps and noise levels of schedulers"),
    "export": ("latentrt.export.cli", "convert a checkpoint to a bundle (needs the extra `export`)"),
    "build": ("latentrt.export.build_cli", "build engines for a bundle (TensorRT needs an extra `tensorrt…`)"),
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
    for name, (module, help_text) in _BY_NAME.items():
        if name in words[:2]:
            importlib.import_module(module).add_parser(commands)
        else:
            commands.add_parser(name, help=help_text)
    _add_verify(commands)
    _add_info(commands)
    return parser


def _add_verify(commands: Any) -> None:
    parser = commands.add_parser(
        "verify",
        help="prove that a bundle is whole and draws what it should",
        description="Check all hashes, then replay the golden outputs on a backend. Exit status 1 where either fails.",
    )
    add_bundle_flags(parser)
    parser.add_argument("path", type=Path, nargs="?", help="the bundle's folder, same as --bundle")
    parser.add_argument("--hashes-only", action="store_true", help="do not draw")
    parser.set_defaults(run=_verify)


def _verify(arguments: argparse.Namespace) -> int:
    from tqdm import tqdm

    from .bundle import Bundle
    from .pipeline import embedded_bundle
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
    with load_pipeline(arguments) as pipe:
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
    print(f"\nengines: {len(manifest.engines) or 'none; the graphs run on OpenVINO or ONNX Runtime'}")
    for engine in manifest.engines:
        capabilities = ", ".join(engine.compute_capabilities)
        gpus = engine.device or f"compute capability {capabilities}"
        print(f"  {engine.graph:14} {sizes_text(engine) or 'any size':32} {engine.backend} {engine.version}, {gpus}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
