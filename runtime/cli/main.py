"""The command `latentrt`. Modules of subcommands are imported only when needed."""

import argparse
import importlib
import logging
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from latentrt.runtime.errors import LatentRTError

# Command -> its module and its help text.
_COMMANDS = {
    "generate": ("latentrt.runtime.cli.generate", "draw pictures"),
    "schedule": ("latentrt.runtime.cli.schedule", "show timesteps and noise levels of schedulers"),
    "verify": ("latentrt.runtime.cli.verify", "check a bundle's hashes and its outputs"),
    "info": ("latentrt.runtime.cli.info", "show the contents of a bundle"),
    "export": ("latentrt.export.cli", "convert a checkpoint to a bundle (needs the extra `export`)"),
    "build": ("latentrt.export.build.cli", "build engines for a bundle (TensorRT needs an extra `tensorrt…`)"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status. Errors of latentrt print one line to stderr and return 1."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    try:
        parsed = _parser(words).parse_args(words)
        if parsed.verbose:
            logging.getLogger("latentrt").setLevel(logging.INFO)
        with _interrupted_by_termination():
            status: int = parsed.run(parsed)
        return status
    except LatentRTError as error:
        print(f"latentrt: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("latentrt: interrupted; no incomplete files were left", file=sys.stderr)
        return 130


@contextmanager
def _interrupted_by_termination() -> Iterator[None]:
    """SIGTERM raises `KeyboardInterrupt` inside the block, so that commands clean up as after Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield
        return
    before = signal.signal(signal.SIGTERM, _raise_interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _raise_interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _parser(words: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("latentrt", description="Stable Diffusion with ONNX and TensorRT.")
    parser.add_argument("-v", "--verbose", action="store_true", help="log what is loaded and where it runs")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name, (module, help_text) in _COMMANDS.items():
        if name in words[:2]:
            importlib.import_module(module).add_parser(commands)
        else:
            commands.add_parser(name, help=help_text)
    return parser
