"""The fuzz targets of the C++ library, and the inputs that are kept for each."""

import subprocess
from pathlib import Path

from .exports import ROOT

FUZZ = ROOT / "native" / "tests" / "fuzz"
TARGETS = sorted(file.stem for file in FUZZ.glob("*.cpp") if file.stem != "replay")


def replayed(build: Path, target: str) -> None:
    """Run a target on its corpus with the program of a build."""
    inputs = sorted((FUZZ / "corpus" / target).iterdir())
    assert inputs
    command = [build / "tests" / "fuzz" / "replay", target, *inputs]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    # The last input that is named is the one at fault.
    assert done.returncode == 0, f"{target}: {done.stdout[-200:]}{done.stderr[-3000:]}"
    assert done.stdout.count("\n") == len(inputs)
