"""The command `latentrt`: verify and info; the other commands are loaded when they are called."""

import argparse
import importlib
import logging
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

from latentrt.runtime.errors import LatentRTError

from .info import _add_info
from .verify import _add_verify

# Commands whose modules are loaded when they are called; the exporter needs packages that the runtime does not.
_BY_NAME = {
    "generate": ("latentrt.runtime.cli.generate", "draw pictures"),
    "schedule": ("latentrt.runtime.cli.schedule", "timesteps and noise levels of schedulers"),
    "export": ("latentrt.export.cli", "convert a checkpoint to a bundle (needs the extra `export`)"),
    "build": ("latentrt.export.build.cli", "build engines for a bundle (TensorRT needs an extra `tensorrt…`)"),
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


def interrupt_on_termination() -> None:
    """From now on a termination of this process cleans up like an interrupt."""
    signal.signal(signal.SIGTERM, _raise_interrupt)


def _raise_interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
