"""A process that opens, draws and closes many times does not grow."""

import subprocess

import pytest
from support.exports import SHAPES
from support.native import built, onnxruntime_library

ROUNDS = 60


@pytest.mark.slow
def test_opening_drawing_and_closing_keeps_no_memory() -> None:
    """After the 60th round at most 4 MiB more than after the 18th; of 1,000 rounds, the last 900 add less than 2."""
    command = [built() / "tests" / "open_close", SHAPES.bundle, onnxruntime_library(), str(ROUNDS)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    resident = dict(map(int, line.split()) for line in done.stdout.splitlines())
    assert list(resident) == list(range(6, ROUNDS + 1, 6))
    assert resident[ROUNDS] - resident[18] <= 4 << 10
