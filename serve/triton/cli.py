"""`latentrt triton`: a model repository for NVIDIA Triton Inference Server. Knows flags; the rest is imported late."""

import argparse
from pathlib import Path
from typing import Any

from latentrt.runtime.errors import InputError
from latentrt.serve.extra import require_extra
from latentrt.serve.settings import add_setting_flags, given_flags, resolve

from .parameters import FORWARDED, forwarded

EXAMPLES = """examples:
  latentrt triton engines/sd15 models --devices cuda:0       # then: tritonserver --model-repository=models
  latentrt triton sd15=engines/sd15 sdxl=engines/sdxl models --devices cuda:0,cuda:1
  latentrt triton engines/sd15 models --copy --no-progress   # for clients over HTTP, in a folder that can be moved
"""


def add_parser(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "triton",
        help="write a model repository for NVIDIA Triton Inference Server",
        description="Write a model repository for NVIDIA Triton Inference Server: a folder for each bundle, which its "
        "Python backend draws with. Settings stand in each config.pbtxt as parameters, and may be changed there.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("models", nargs="+", metavar="BUNDLE", help="folder of a bundle, or NAME=FOLDER")
    parser.add_argument("repository", type=Path, metavar="REPOSITORY", help="folder to write into; made if need be")
    parser.add_argument("--name", help="name of the model, where there is one; default: that of its folder")
    parser.add_argument(
        "--progress",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="tell progress and previews in responses of their own, which needs gRPC streams or generate_stream; "
        "--no-progress: one response a request, also over plain HTTP",
    )
    parser.add_argument("--copy", action="store_true", help="copy bundles into the repository, instead of naming them")
    parser.add_argument("--overwrite", action="store_true", help="replace models that are there already")
    add_setting_flags(parser, ("devices", *FORWARDED))
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    if arguments.name is not None:
        if len(arguments.models) != 1:
            raise InputError(f"--name {arguments.name} is for one bundle: NAME=FOLDER names each of several")
        arguments.models = [f"{arguments.name}={arguments.models[0]}"]
    resolved = resolve(given_flags(arguments), {})
    require_extra("triton")
    from latentrt.serve.wiring import models_of

    from .repository import ModelFolder, write_models

    folders = [
        ModelFolder(
            name=name,
            bundle=model.bundle.path,
            devices=resolved.settings.devices,
            progress=arguments.progress,
            settings=forwarded(resolved),
            copy=arguments.copy,
        )
        for name, model in models_of(resolved.settings).items()
    ]
    for folder in write_models(folders, arguments.repository, overwrite=arguments.overwrite):
        print(folder)
    return 0
