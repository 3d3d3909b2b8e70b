"""A process that opens, draws and closes many times does not grow."""

import subprocess

import pytest
from support.exports import SHAPES
from support.native import built, onnxruntime_library

ROUNDS = 50


# The library itself keeps nothing: with the stand-in, 1,000 rounds end where the first hundred did. With ONNX Runtime
# pages of its arena are touched bit by bit, 8 MiB in the first 300 rounds and 1 MiB in the 700 after them.
@pytest.mark.slow
@pytest.mark.parametrize(("engine", "most"), [("fake", 512), ("real", 8 << 10)])
def test_opening_drawing_and_closing_keeps_no_memory(engine: str, most: int) -> None:
    """Resident KiB after all rounds beside those after a fifth of them."""
    fake = built() / "tests" / "libfake_onnxruntime.so"
    program = built() / "tests" / "open_close"
    command = [program, SHAPES.bundle, fake if engine == "fake" else onnxruntime_library(), str(ROUNDS)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    resident = dict(tuple(map(int, line.split())) for line in done.stdout.splitlines())
    assert list(resident) == list(range(ROUNDS // 10, ROUNDS + 1, ROUNDS // 10))
    assert resident[ROUNDS] - resident[ROUNDS // 5] <= most
