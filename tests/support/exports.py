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
from typing import Any
from unittest import mock

ROOT = Path(__file__).parent.parent.parent
# name -> family, precision, opset, tinier. Most tests use the first; the others show that the exporter is general.
# Families with a TAESD have another one for previews.
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
    "sd1-ports-fp32": ("sd1", "fp32", 23, False),
    "sd2-ports-fp32": ("sd2", "fp32", 23, True),
    "sdxl-ports-fp32": ("sdxl", "fp32", 23, True),
    "sd1-taesd-fp32": ("sd1-taesd", "fp32", 23, True),
    "sd1-inpaint-taesd-fp32": ("sd1-inpaint-taesd", "fp32", 18, True),
    "sdxl-taesd-fp16": ("sdxl-taesd", "fp16", 23, True),
}
PORTS = "control,t2i,ip-adapter"  # of exports that are named so
# Control bundle -> the checkpoint that it steers, how it is made (see `controlnets.py`), and its precision.
CONTROLS: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "sd1-net": ("sd1-ports-fp32", "controlnet", {"seed": 21}, "fp32"),
    "sd1-bgr": ("sd1-ports-fp32", "controlnet", {"seed": 22, "controlnet_conditioning_channel_order": "bgr"}, "fp32"),
    "sd1-pools": ("sd1-ports-fp32", "controlnet", {"seed": 23, "global_pool_conditions": True}, "fp32"),
    "sd2-net": ("sd2-ports-fp32", "controlnet", {"seed": 24}, "fp32"),
    "sd2-other": ("sd2-ports-fp32", "controlnet", {"seed": 25}, "fp32"),
    "sdxl-net": ("sdxl-ports-fp32", "controlnet", {"seed": 26}, "fp32"),
    "sdxl-other": ("sdxl-ports-fp32", "controlnet", {"seed": 27}, "fp32"),
    "sdxl-union": ("sdxl-ports-fp32", "union", {"seed": 28}, "fp32"),
    "sd1-t2i": ("sd1-ports-fp32", "t2i", {"seed": 31}, "fp32"),
    "sdxl-t2i": ("sdxl-ports-fp32", "t2i", {"seed": 32}, "fp32"),
    "sd1-ip": ("sd1-ports-fp32", "ip", {"seed": 33}, "fp32"),
    "sd1-ip-plus": ("sd1-ports-fp32", "ip", {"seed": 34, "plus": True}, "fp32"),
    "sdxl-ip": ("sdxl-ports-fp32", "ip", {"seed": 35}, "fp32"),
    "sdxl-ip-plus": ("sdxl-ports-fp32", "ip", {"seed": 36, "plus": True}, "fp32"),
    "encoder": ("sd1-ports-fp32", "encoder", {"seed": 37}, "fp32"),
}
QUICK_CONTROLS = ("sd1-net", "sd1-bgr", "sd1-t2i", "sd1-ip", "encoder")
# Those that `make test` uses; tests that need others are slow.
QUICK_EXPORTS = ("sd1-fp32", "sdxl-fp32", "sd1-ports-fp32", "sd1-taesd-fp32")
# Modules that diffusers and transformers import lazily.
CLASSES = (
    "diffusers.models.unets.unet_2d_condition",
    "diffusers.models.autoencoders.autoencoder_kl",
    "diffusers.models.autoencoders.autoencoder_tiny",
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

    @property
    def preview_vae(self) -> Path:
        """The VAE of previews, of bundles that have one."""
        return self.bundle.with_name(f"{self.bundle.name}.preview_vae")


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
            options += ["--ports", PORTS, "--no-plans"] if "-ports-" in name else []
            arguments = (result, log, family, tinier, name in SINGLE_FILES, MARKED.get(name, ()), options)
            child = _context().Process(target=_export_here, args=arguments)
            child.start()
            child.join()
            assert child.exitcode == 0, log.read_text(encoding="utf-8")[-3000:] if log.exists() else child.exitcode
    return result


def export_net(folder: Path, name: str, base: Exported) -> Exported:
    """Export a control bundle of `CONTROLS`, as `export` does; the checkpoint is a folder of diffusers."""
    result = Exported(folder / f"{name}.checkpoint", folder / name)
    with (folder / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not result.bundle.exists():
            log = folder / f"{name}.log"
            child = _context().Process(target=_export_net_here, args=(result, log, base.checkpoint / "unet", name))
            child.start()
            child.join()
            assert child.exitcode == 0, log.read_text(encoding="utf-8")[-3000:] if log.exists() else child.exitcode
    return result


def _export_net_here(result: Exported, log: Path, unet: Path, name: str) -> None:
    """Entry point of the child."""
    _log_to(log)
    from support.controlnets import MAKERS

    from latentrt.runtime.cli.main import main

    _, kind, options, precision = CONTROLS[name]
    made = MAKERS[kind](result.checkpoint, unet, **options)
    source = made if isinstance(made, Path) else result.checkpoint  # a file, or the folder
    sys.exit(main(["export-control", str(source), str(result.bundle), "--precision", precision]))


def _log_to(log: Path) -> None:
    """Use all cores, and write what the process prints to a file."""
    os.sched_setaffinity(0, range(os.cpu_count() or 1))
    with log.open("w", encoding="utf-8") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())


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
    _log_to(log)
    import torch
    from support.checkpoints import tiny_checkpoint, tiny_vae
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
    if family.endswith("taesd"):
        tiny_vae(2 if tinier else 3, seed=12, width=8).save_pretrained(result.preview_vae)
        options = [*options, "--preview-vae", str(result.preview_vae)]
    if single:
        options = [*options, "--config", str(checkpoint)]
        empty = {mark: torch.tensor([]) for mark in marks}
        file = checkpoint.with_name(f"{checkpoint.name}.safetensors")
        checkpoint = single_file(checkpoint, file, family, marks=empty)
    with mock.patch.object(write.subprocess, "run", checked), mock.patch.object(write, "add_default_schedulers", few):
        sys.exit(main(["export", str(checkpoint), str(result.bundle), *options]))
