"""Bundles that tests share, exported from random checkpoints by child processes."""

import fcntl
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
# name -> family, precision, opset, tinier. Most tests use the first; the others show that the exporter is general.
EXPORTS = {
    "sd1-fp32": ("sd1", "fp32", 23, False),
    "sd2-fp16": ("sd2", "fp16", 23, True),
    "sd2-fp32-opset18": ("sd2", "fp32", 18, True),
    "sd1-bf16": ("sd1", "bf16", 23, True),
    "sdxl-fp32": ("sdxl", "fp32", 23, True),
    "sd1-inpaint-fp32": ("sd1-inpaint", "fp32", 23, True),
    "lcm-fp32": ("lcm", "fp32", 23, True),
    "shapes-fp16": ("shapes", "fp16", 23, False),
}
# Exported from a single file in the original layout; what tests compare with is the folder that it was made from.
SINGLE_FILES = ("sd2-fp32-opset18",)


@dataclass(frozen=True)
class Exported:
    """A random checkpoint and the bundle that was exported from it."""

    checkpoint: Path
    bundle: Path


SHAPES = Exported(ROOT / "tests" / "data" / "shapes", ROOT / "engines" / "shapes")


def export(folder: Path, name: str, family: str, precision: str, opset: int, tinier: bool) -> Exported:
    """Checkpoint and bundle, made by a child process unless they are in the cache, or another process is about it."""
    checkpoint = SHAPES.checkpoint if family == "shapes" else folder / f"{name}.checkpoint"
    result = Exported(checkpoint, folder / name)
    script = (
        "import os, sys; from pathlib import Path; sys.path.insert(0, sys.argv[1])\n"
        "os.sched_setaffinity(0, range(os.cpu_count()))\n"
        "from checkpoints import tiny_checkpoint; from latentrt.runtime.cli import main\n"
        "from original_layout import single_file\n"
        "checkpoint, bundle, family, tinier, single, *options = sys.argv[2:]\n"
        "if family != 'shapes':\n"
        "    tiny_checkpoint(Path(checkpoint), family, seed=11, tinier=tinier == 'True')\n"
        "if single == 'True':\n"
        "    options += ['--config', checkpoint]\n"
        "    checkpoint = str(single_file(Path(checkpoint), Path(checkpoint + '.safetensors'), family))\n"
        "sys.exit(main(['export', checkpoint, bundle, '--steps', '6', *options]))\n"
    )
    with (folder / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not result.bundle.exists():
            arguments = [result.checkpoint, result.bundle, family, tinier, name in SINGLE_FILES]
            arguments += ["--precision", precision, "--opset", opset]
            command = [sys.executable, "-c", script, ROOT / "tests", *arguments]
            child = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False)
            assert child.returncode == 0, child.stderr[-3000:]
    return result
