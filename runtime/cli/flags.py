"""Flags that several commands share: the bundle and what runs it, and the options of a call, made from their table."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentrt.runtime.errors import InputError, shown
from latentrt.runtime.files import read_json
from latentrt.runtime.request.options import OPTIONS, flag_of

if TYPE_CHECKING:
    from latentrt.runtime.pipeline import Pipeline

# Where the table's text is about more than a flag takes.
_HELP = {
    "scheduler": "such as euler_a, dpm++_2m_karras, euler:timestep_spacing=trailing, a web UI's name, or a file "
    "FILE.json with a diffusers config or a plan; see `latentrt schedule`. Default: the bundle's",
    "seed": "seed of the first image; the others count up from it. Default: random",
    "negative_prompt": "what to move away from. Default: empty, or zeros for models that were trained so",
    "image": "image to start from: a file, or latents as --save-latents writes them",
    "latents": "file of unit normal noise (images, C, h, w) to start from instead of the seed's",
}


def add_bundle_flags(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `Pipeline.load`."""
    parser.add_argument("--bundle", type=Path, help="the bundle's folder; default: the embedded model")
    parser.add_argument(
        "--backend", default="auto", help="auto (default), tensorrt, tensorrt_rtx, openvino or onnxruntime"
    )
    parser.add_argument("--device", help="cpu, cuda or cuda:1; default: the best that is found")
    parser.add_argument("--engines", type=Path, metavar="DIR", help="folder of compiled engines, if not in the bundle")
    parser.add_argument("--trust-engines", action="store_true", help="also load engines that contain host code")
    parser.add_argument(
        "--control",
        action="append",
        default=[],
        metavar="NAME=FOLDER",
        type=_control,
        help="a ControlNet or adapter, and the name that calls give it: a bundle of `latentrt export-control`; "
        "repeatable",
    )


def load_pipeline(arguments: argparse.Namespace) -> "Pipeline":
    """The pipeline that the flags ask for; errors are those of `Pipeline.load`."""
    from latentrt.runtime.pipeline import Pipeline

    return Pipeline.load(
        arguments.bundle,
        refiner=getattr(arguments, "refiner", None),
        backend=arguments.backend,
        device=arguments.device,
        engines=arguments.engines,
        trust_engines=arguments.trust_engines,
        controls=given_controls(arguments),
    )


def given_controls(arguments: argparse.Namespace) -> dict[str, Path | str]:
    """The control bundles of the flags by name; raises `InputError` for a name that is given twice."""
    if len(dict(arguments.control)) < len(arguments.control):
        raise InputError("--control gives a name twice: give each ControlNet a name of its own")
    return dict(arguments.control)


def _control(text: str) -> tuple[str, str]:
    name, equals, folder = text.partition("=")
    if not equals or not name or not folder:
        raise argparse.ArgumentTypeError(f"{text!r}: expected NAME=FOLDER, such as canny=controls/canny")
    return name, folder


def add_option_flags(parser: argparse.ArgumentParser) -> None:
    """Add a flag for every option of a call that has one."""
    group = parser.add_argument_group("options of the image")
    for name, option in OPTIONS.items():
        if option.flag is not None:
            fixed = option.default is not None and not callable(option.default) and option.default is not False
            text = _HELP.get(name, option.text)
            text = f"{text}. Default: {option.default}" if fixed else text
            flag = option.flag or flag_of(name)
            group.add_argument(flag, dest=name, help=text.replace("%", "%%"), **option.kind.flag)


def given_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options whose flags were given, as arguments of `Pipeline.__call__`."""
    given = {name: getattr(arguments, name) for name, option in OPTIONS.items() if option.flag is not None}
    if given["scheduler"] is not None:
        given["scheduler"] = scheduler_of_flag(given["scheduler"])
    return {name: value for name, value in given.items() if value is not None}


def scheduler_of_flag(text: str) -> str | dict[str, Any]:
    """A name, or the content of a JSON file; raises `InputError`."""
    if not text.endswith(".json") or ":" in Path(text).name:
        return text
    try:
        given = read_json(Path(text))
    except (OSError, ValueError) as error:
        raise InputError(f"{text} cannot be read as a scheduler config: {error}") from error
    if not isinstance(given, dict):
        raise InputError(f"{text} holds {shown(given)}: expected a scheduler config, a JSON object")
    return given
