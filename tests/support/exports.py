"""Bundles that tests share, exported from random checkpoints by child processes."""

import fcntl
import io
import multiprocessing
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cache, partial
from multiprocessing.context import ForkServerContext
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).parent.parent.parent
# name -> family, precision, opset, tinier. Most tests use the first; the others show that the exporter is general.
EXPORTS = {
    "sd1-fp32": ("sd1", "fp32", 23, False),
    "shapes-fp16": ("shapes", "fp16", 23, False),  # takes longest, so it starts early
    "sd2-fp16": ("sd2", "fp16", 23, True),
    "sd2-fp32-opset18": ("sd2", "fp32", 18, True),
    "sd1-bf16": ("sd1", "bf16", 23, True),
    "sdxl-fp32": ("sdxl", "fp32", 23, True),
    "sdxl-refiner-fp32": ("sdxl-refiner", "fp32", 23, True),
    "sdxl-v-fp32": ("sdxl", "fp32", 23, True),
    "sdxl-edm-fp32": ("sdxl-edm", "fp32", 23, True),
    "sd1-inpaint-fp32": ("sd1-inpaint", "fp32", 23, True),
    "lcm-fp32": ("lcm", "fp32", 23, True),
}
# Those that `make test` uses; tests that need others are slow.
QUICK_EXPORTS = ("sd1-fp32", "sdxl-fp32")
# Modules that diffusers and transformers import lazily.
CLASSES = (
    "diffusers.models.unets.unet_2d_condition",
    "diffusers.models.autoencoders.autoencoder_kl",
    "transformers.models.clip.modeling_clip",
)
# Exported from a single file in the original layout; tests compare with the folder that the file was made from.
SINGLE_FILES = ("sd2-fp32-opset18", "sdxl-v-fp32")
# Empty tensors that say what the UNet predicts, as in files of fine-tunes.
MARKED = {"sdxl-v-fp32": ("v_pred", "ztsnr")}


@dataclass(frozen=True)
class Exported:
    """A random checkpoint and the bundle that was exported from it."""

    checkpoint: Path
    bundle: Path


SHAPES = Exported(ROOT / "tests" / "data" / "shapes", ROOT / "engines" / "shapes")


def export(folder: Path, name: str, family: str, precision: str, opset: int, tinier: bool) -> Exported:
    """Export in a child process, unless `folder` already has the bundle; waits for other processes that export it."""
    checkpoint = SHAPES.checkpoint if family == "shapes" else folder / f"{name}.checkpoint"
    result = Exported(checkpoint, folder / name)
    with (folder / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not result.bundle.exists():
            log = folder / f"{name}.log"
            options = ["--precision", precision, "--opset", str(opset), "--steps", "6"]
            arguments = (result, log, family, tinier, name in SINGLE_FILES, MARKED.get(name, ()), options)
            child = _context().Process(target=_export_here, args=arguments)
            child.start()
            child.join()
            assert child.exitcode == 0, log.read_text(encoding="utf-8")[-3000:] if log.exists() else child.exitcode
    return result


@cache
def _context() -> ForkServerContext:
    """Children fork from a process that has imported the exporter's packages, which takes as long as tracing a VAE."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["diffusers.models", *CLASSES, "latentrt.export.write", "latentrt.export.parity"])
    return context


def _export_here(
    result: Exported, log: Path, family: str, tinier: bool, single: bool, marks: tuple[str, ...], options: list[str]
) -> None:
    """Entry point of the child. Runs the parity check in this process: a separate one only helps large models."""
    os.sched_setaffinity(0, range(os.cpu_count() or 1))
    with log.open("w", encoding="utf-8") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
    import torch
    from support.checkpoints import tiny_checkpoint
    from support.original_layout import single_file

    from latentrt.export import parity, write
    from latentrt.runtime.cli.main import main

    def checked(command: list[str], *, input: str, **_: object) -> subprocess.CompletedProcess[str]:  # noqa: A002
        output, errors = io.StringIO(), io.StringIO()
        with redirect_stdout(output), redirect_stderr(errors):
            status = parity.main(lambda: input)
        return subprocess.CompletedProcess(command, status, output.getvalue(), errors.getvalue())

    # A few numbers of steps, as most tests need no plans at all. `shapes-fp16` has those that an export writes.
    defaults = partial(write.add_default_schedulers, steps=range(1, 13))
    few = defaults if family != "shapes" else write.add_default_schedulers
    checkpoint = result.checkpoint
    if family != "shapes":
        tiny_checkpoint(checkpoint, family, seed=11, tinier=tinier)
    if single:
        options = [*options, "--config", str(checkpoint)]
        empty = {mark: torch.tensor([]) for mark in marks}
        file = checkpoint.with_name(f"{checkpoint.name}.safetensors")
        checkpoint = single_file(checkpoint, file, family, marks=empty)
    with mock.patch.object(write.subprocess, "run", checked), mock.patch.object(write, "add_default_schedulers", few):
        sys.exit(main(["export", str(checkpoint), str(result.bundle), *options]))
