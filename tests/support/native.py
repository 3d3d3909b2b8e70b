"""What is inside of the C++ library, for tests: the shared library `probe`, whose functions `ctypes` calls."""

import ctypes
import functools
import os
import subprocess
from collections.abc import Sequence

from .exports import ROOT

BUILD = ROOT / "out" / "native"


@functools.cache
def probe() -> ctypes.CDLL:
    """The library, built where its sources are newer."""
    headers = os.environ.get("LATENTRT_NATIVE_HEADERS", str(BUILD / "include"))
    _run(["cmake", "-G", "Ninja", "-S", str(ROOT / "native"), "-B", str(BUILD), f"-DHEADERS={headers}"])
    _run(["cmake", "--build", str(BUILD), "--target", "probe"])
    return ctypes.CDLL(str(BUILD / "libprobe.so"))


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stdout[-3000:]}{done.stderr[-2000:]}")
