"""`latentrt verify`: check a bundle's hashes and its golden outputs."""

import argparse
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .flags import add_bundle_flags, load_pipeline

if TYPE_CHECKING:
    from latentrt.runtime.bundle import ControlBundle
    from latentrt.runtime.goldens import GoldenCheck


def add_parser(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "verify",
        help="check a bundle's hashes and its outputs",
        description="Check all hashes, then compare a backend with the golden outputs. Exit status 1 if either fails.",
    )
    add_bundle_flags(parser)
    parser.add_argument("path", type=Path, nargs="?", help="the bundle's folder, same as --bundle")
    parser.add_argument("--hashes-only", action="store_true", help="check hashes only")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    from tqdm import tqdm

    from latentrt.runtime.bundle import ControlBundle, open_bundle
    from latentrt.runtime.goldens import verify_goldens
    from latentrt.runtime.pipeline import embedded_bundle

    arguments.bundle = arguments.path or arguments.bundle or embedded_bundle()
    bundle = open_bundle(arguments.bundle)
    files = bundle.manifest.files
    total = sum(file.size for file in files.values())
    with tqdm(total=total, disable=None, unit="B", unit_scale=True, desc="hashes") as bar:
        altered = bundle.altered_files(bar.update)
    if altered:
        print(f"{bundle.path}: altered: {', '.join(altered)}. Copy or export the bundle again.")
        return 1
    print(f"{bundle.path}: {len(files)} files, {total / 2**20:,.1f} MiB, all hashes agree")
    if arguments.hashes_only:
        return 0
    if isinstance(bundle, ControlBundle):
        return _verify_control(bundle, arguments)
    with load_pipeline(arguments) as pipe:
        return _verdict(bundle.path, verify_goldens(pipe), pipe.backend)


def _verify_control(bundle: "ControlBundle", arguments: argparse.Namespace) -> int:
    from latentrt.runtime.backends import load_backend
    from latentrt.runtime.goldens import verify_control

    backend = load_backend(
        bundle,
        arguments.backend,
        arguments.device,
        engines=arguments.engines,
        trust_engines=arguments.trust_engines,
    )
    with closing(backend):
        return _verdict(bundle.path, verify_control(bundle, backend), backend.name)


def _verdict(bundle: Path, checks: Iterable["GoldenCheck"], backend: str) -> int:
    """Print each check when it is made, then whether all have passed; returns the exit status."""
    failed = False
    for check in checks:
        failed |= not check.passed
        print(f"  {'ok  ' if check.passed else 'FAIL'} {check.name}: {check.text}")
    print(f"{bundle}: {'FAILS' if failed else 'reproduces'} its goldens on {backend}")
    return int(failed)
