"""Some minutes of training the embedded model further on this GPU, and its state and checkpoint in the results.

It continues where an earlier call or another machine ended, if the state is there: the folder `training` of the results
goes to `training` in the folder of --work. Pictures that are trained on are not in it, as their seed draws them again.
"""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import TextIO

from benchmarks.common.paths import SHAPES_CHECKPOINT

from .places import Place
from .report import Report

STATE, CHECKPOINT, LOG = "shapes-unet.pt", "shapes", "training.log"
POOLED = ("captions", "latents")  # of the state: large, and drawn again where they are missing


def run(
    place: Place, report: Report, seconds: float = 450, steps: int = 20_000, batch: int = 128, pool: int = 40_000
) -> None:
    """Report step, running loss and seconds spent, and bring back state and checkpoint. Passes if one was written.

    Args:
        place: for its device and its folder of work.
        report: gets the figures; the results go to the folder of its own.
        seconds: after which the training is interrupted; a later call continues.
        steps, batch, pool: as in `benchmarks.shapes.train_unet`.
    """
    folder, results = place.work / "training", report.file.parent.parent / "training"
    if not (folder / CHECKPOINT).exists():
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copytree(SHAPES_CHECKPOINT, folder / CHECKPOINT)
    words = ["--warm", "--steps", str(steps), "--batch", str(batch), "--pool", str(pool), "--device", place.device]
    with (folder / LOG).open("a", encoding="utf-8") as log:
        done = trained(folder, words, seconds, log)
        if not done:
            done = trained(folder, ["--export"], seconds, log)
    report.check("a checkpoint was written", done, f"see {LOG}")
    bring_back(folder, results, report)


def trained(folder: Path, words: list[str], seconds: float, log: TextIO) -> bool:
    """Call `train_unet`; return whether it ended by itself and well, not interrupted after `seconds`."""
    command = [sys.executable, "-u", "-m", "benchmarks.shapes.train_unet", *words]
    command += ["--state", str(folder / STATE), "--out", str(folder / CHECKPOINT)]
    try:
        return subprocess.run(command, stdout=log, stderr=log, timeout=seconds, check=False).returncode == 0
    except subprocess.TimeoutExpired:  # the state of some steps before is saved
        return False


def bring_back(folder: Path, results: Path, report: Report) -> None:
    """Copy the checkpoint, the log and a state without the pictures, which is small; report where it stands."""
    import torch

    shutil.copytree(folder / CHECKPOINT, results / CHECKPOINT, dirs_exist_ok=True)
    shutil.copy(folder / LOG, results / LOG)
    if (folder / STATE).exists():
        state = torch.load(folder / STATE, map_location="cpu")
        report.figure("training", {name: state[name] for name in ("step", "running", "spent")})
        torch.save({name: value for name, value in state.items() if name not in POOLED}, results / STATE)
