"""The command `latentrt`. Modules of subcommands are imported only when needed."""

import argparse
import importlib
import io
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

from latentrt.runtime.errors import LatentRTError

# Command -> its module and its help text.
_COMMANDS = {
    "generate": ("latentrt.runtime.cli.generate", "draw pictures"),
    "schedule": ("latentrt.runtime.cli.schedule", "show timesteps and noise levels of schedulers"),
    "plans": ("latentrt.runtime.cli.plans", "compile schedulers for programs in C and C++"),
    "verify": ("latentrt.runtime.cli.verify", "check a bundle's hashes and its outputs"),
    "info": ("latentrt.runtime.cli.info", "show the contents of a bundle"),
    "serve": ("latentrt.serve.cli", "serve pictures over HTTP (needs the extra `serve`)"),
    "triton": (
        "latentrt.serve.triton.cli",
        "write a model repository for NVIDIA Triton Inference Server (needs the extra `serve`)",
    ),
    "export": ("latentrt.export.cli", "convert a checkpoint to a bundle (needs the extra `export`)"),
    "export-control": ("latentrt.export.control.cli", "convert a ControlNet or adapter (needs the extra `export`)"),
    "quantize": ("latentrt.export.quantize.cli", "make a bundle of 8 bits (needs the extra `quantize`)"),
    "build": ("latentrt.export.build.cli", "build engines for a bundle (TensorRT needs an extra `tensorrt…`)"),
    "inspect": ("latentrt.export.build.inspect_cli", "show the kernels of TensorRT engines (needs onnx)"),
}


logger = logging.getLogger(__name__)


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status.

    Errors of latentrt and of the file system print one line to stderr and return 1, Ctrl-C returns 130, SIGTERM 143,
    and 141 means that nobody reads stdout any more.
    """
    _prepare_streams()
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    try:
        status = _run(list(sys.argv[1:] if arguments is None else arguments))
    except SystemExit:
        _flush()
        raise
    flushed = _flush()
    return status or flushed


def _run(words: Sequence[str]) -> int:
    try:
        with _interrupted_by_termination():
            parsed = _parser(words).parse_args(words)
            if parsed.verbose:
                logging.getLogger("latentrt").setLevel(logging.INFO)
            status: int = parsed.run(parsed)
        return status
    except LatentRTError as error:
        logger.info("where it was raised:", exc_info=error)
        return _told(str(error), 1)
    except KeyboardInterrupt as error:
        return _told("interrupted; no incomplete files were left", 143 if isinstance(error, Terminated) else 130)
    except BrokenPipeError:
        return 141
    except OSError as error:
        logger.info("where it was raised:", exc_info=error)
        return _told(str(error) if error.filename else f"reading or writing failed: {error.strerror or error}", 1)


def _told(text: str, status: int) -> int:
    """The status, after a line on stderr."""
    with suppress(OSError):
        print(f"latentrt: {text}", file=sys.stderr)
    return status


def _prepare_streams() -> None:
    """Make stdout and stderr writable whatever they are: closed, or of an encoding without some characters."""
    with suppress(OSError):
        # Closed descriptors would be given to the next files that are opened, and messages would go into these.
        while (handle := os.open(os.devnull, os.O_RDWR)) <= 2:
            pass
        os.close(handle)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            # Names of files keep bytes that are not UTF-8.
            stream.reconfigure(errors="surrogateescape" if stream.encoding.lower() == "utf-8" else "backslashreplace")


def _flush() -> int:
    """Write what stdout holds; the status to exit with. Where that fails, nothing is written any more."""
    try:
        sys.stdout.flush()
        return 0
    except OSError as error:
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            return 141
        return _told(f"the output could not be written to stdout: {error.strerror}", 1)


@contextmanager
def _interrupted_by_termination() -> Iterator[None]:
    """SIGTERM raises `Terminated` inside the block, so that commands clean up as after Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield
        return
    before = signal.signal(signal.SIGTERM, _raise_interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _raise_interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise Terminated


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
