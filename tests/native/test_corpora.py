"""What fuzzing has found stays mended: the inputs in native/tests/fuzz/corpus run through their targets."""

import subprocess
from pathlib import Path

import pytest
from support.fuzzing import TARGETS, replayed
from support.native import built


@pytest.mark.parametrize("target", TARGETS)
def test_what_fuzzing_found_stays_mended(target: str) -> None:
    replayed(built(), target)


def test_the_program_sees_a_fault(tmp_path: Path) -> None:
    """An unknown target and a file that is not there are not taken for success."""
    program = built() / "tests" / "fuzz" / "replay"
    assert subprocess.run([program, "no-such-target"], check=False).returncode == 2
    assert subprocess.run([program, TARGETS[0], tmp_path / "none"], capture_output=True, check=False).returncode == 2
