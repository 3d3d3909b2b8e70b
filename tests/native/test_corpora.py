"""What fuzzing has found stays mended: the inputs in native/tests/fuzz/corpus run through their targets."""

import subprocess
from pathlib import Path

import pytest
from support.exports import ROOT
from support.native import built

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


@pytest.mark.parametrize("target", TARGETS)
def test_what_fuzzing_found_stays_mended(target: str) -> None:
    replayed(built(), target)


def test_the_program_sees_a_fault(tmp_path: Path) -> None:
    """An unknown target and a file that is not there are not taken for success."""
    program = built() / "tests" / "fuzz" / "replay"
    assert subprocess.run([program, "no-such-target"], check=False).returncode == 2
    assert subprocess.run([program, TARGETS[0], tmp_path / "none"], capture_output=True, check=False).returncode == 2
