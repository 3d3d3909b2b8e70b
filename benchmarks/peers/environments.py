"""Makes the environments of the peers, and converts checkpoints for them.

Knows how to install and convert, but not what (`table`), and nothing about measuring. If an environment cannot be made,
the reason is reported and the other peers are still compared.
"""

import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.common.paths import ROOT

from .table import CONVERSIONS, Environment

# Settings of one machine's BLAS would slow down some peers and not others; paths belong to this environment.
REMOVED_VARIABLES = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE")
BROUGHT_BY_VENV = ("pip", "setuptools", "pkg_resources", "_distutils_hack", "distutils-precedence.pth")


class PeerError(Exception):
    """A peer cannot be compared; the message is the reported reason."""


def clean_variables() -> dict[str, str]:
    """This process's environment variables without `REMOVED_VARIABLES`, and with the Hugging Face hub offline."""
    kept = {name: value for name, value in os.environ.items() if name not in REMOVED_VARIABLES}
    return kept | {"HF_HUB_OFFLINE": "1"}


def program(folder: Path, environment: str, name: str = "python") -> Path:
    """The path of a program in an environment."""
    return folder.resolve() / environment / "bin" / name


def make_environment(folder: Path, name: str, environment: Environment) -> None:
    """Install an environment, unless it is installed already.

    Raises:
        PeerError: pip failed, now or in an earlier run. Remove the environment's folder to try again.
    """
    if environment.running:
        _use(program(folder, name), sys.executable)
        return
    if environment.given:
        _use_given(folder, name, environment.given)
        return
    place, note = folder / name, folder / name / "made.json"
    wish = json.loads(
        json.dumps([environment.requirements, environment.extra, environment.without, _sources(environment)])
    )
    if note.exists():
        found = json.loads(note.read_text(encoding="utf-8"))
        if found["wish"] == wish:
            if found["error"]:
                raise PeerError(f"{found['error']} (remove {place} to try again)")
            return
    pip = (program(folder, name), "-m", "pip", "--disable-pip-version-check")
    commands: list[Sequence[str | Path]] = [] if place.exists() else [(sys.executable, "-m", "venv", place)]
    if environment.extra:
        commands.append((*pip, "install", f"latentrt[{environment.extra}] @ {ROOT.as_uri()}"))
        commands.append((*pip, "install", "--force-reinstall", "--no-deps", ROOT))
    if environment.requirements:
        commands.append((*pip, "install", *environment.requirements))
    if environment.without:
        commands.append((*pip, "uninstall", "--yes", *environment.without))
    error = ""
    for command in commands:
        child = subprocess.run(command, env=clean_variables(), capture_output=True, text=True, check=False)
        if child.returncode:
            error = f"installing {name} failed: {_last_line(child.stderr)}"
            break
        if "does not provide the extra" in child.stderr:  # only a warning of pip
            error = f"installing {name} failed: this version of latentrt has no extra {environment.extra!r}"
            break
    place.mkdir(parents=True, exist_ok=True)
    note.write_text(json.dumps({"wish": wish, "error": error}), encoding="utf-8")
    if error:
        raise PeerError(error)


def _use_given(folder: Path, name: str, variable: str) -> None:
    """Make the environment's `python` a script that calls the Python in which the peer is installed."""
    if not os.environ.get(variable):
        raise PeerError(f"not installed: set {variable} to its folder")
    python = shutil.which(os.environ.get(f"{variable}_PYTHON", "python3"))
    if python is None:
        raise PeerError(f"{variable}_PYTHON={os.environ[f'{variable}_PYTHON']} is not a program")
    _use(program(folder, name), python)


def _use(place: Path, python: str) -> None:
    """Make `place` a script that calls this Python."""
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(f'#!/bin/sh\nexec {shlex.quote(python)} "$@"\n', encoding="utf-8")
    place.chmod(0o755)


def convert(folder: Path, name: str, places: Mapping[str, Path | int | str], target: Path) -> float:
    """Convert a checkpoint unless `target` holds the result already; return the seconds of the conversion.

    Args:
        folder: the folder of all environments.
        name: a key of `CONVERSIONS`.
        places: values for the names in the command, except {target}; that of {quantize} is words.
        target: folder of the result.

    Raises:
        PeerError: the converter failed.
    """
    note = target / "conversion.json"
    if note.exists():
        return float(json.loads(note.read_text(encoding="utf-8"))["seconds"])
    shutil.rmtree(target, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    conversion = CONVERSIONS[name]
    words = [
        filled
        for word in conversion.command
        for filled in (
            shlex.split(str(places["quantize"]))
            if word == "{quantize}"
            else [word.format(**places, target=target.resolve())]
        )
    ]
    start = time.perf_counter()
    child = subprocess.run(
        (program(folder, conversion.environment, words[0]), *words[1:]),
        env=clean_variables() | {"PYTHONPATH": str(ROOT)},  # where `benchmarks` is found
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.perf_counter() - start
    if child.returncode:
        raise PeerError(f"conversion to {name} failed: {_reason(child.stderr)}")
    note.write_text(json.dumps({"seconds": seconds}), encoding="utf-8")
    return seconds


def installed_megabytes(folder: Path, environment: str) -> float:
    """Disk space of an environment's packages, without those that every new environment has."""
    packages = next((folder / environment / "lib").glob("python*/site-packages"))
    files = (
        file for entry in packages.iterdir() if not entry.name.startswith(BROUGHT_BY_VENV) for file in _files(entry)
    )
    return sum(file.stat().st_size for file in files) / 1e6


def _files(entry: Path) -> list[Path]:
    return (
        [entry] if entry.is_file() else [file for file in entry.rglob("*") if file.is_file() and not file.is_symlink()]
    )


def _sources(environment: Environment) -> str:
    """A hash of this project's sources, as its version number does not change with them."""
    if not environment.extra:
        return ""
    files = [ROOT / "pyproject.toml", *sorted((ROOT / "runtime").rglob("*.py"))]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def _reason(text: str) -> str:
    """The line that begins as errors of latentrt do, else the last one."""
    return next((line for line in text.splitlines() if line.startswith("latentrt: ")), _last_line(text))


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no message"
