"""Wheels for a machine with a GPU and without a network.

    python -m benchmarks.gpu.wheels prepare FOLDER           # with a network: download wheels and cut them into parts
    python -m benchmarks.gpu.wheels install FOLDER TARGET    # without: join, check and install them

FOLDER holds `manifest.json` and parts of at most 24 MB, which can be transferred one by one. `install` names missing
and altered parts, installs every complete wheel, and can be called again when more parts have arrived. Wheels are
installed into TARGET, a folder to put first on PYTHONPATH; existing packages are not changed. For Python 3.12 on 64-bit
Linux.

Standard library and pip only, as it runs before anything is installed.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

PART_SIZE = 24_000_000
PYTHON = "3.12"
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in (17, 24, 27, 28, 31, 34, 35)] + ["manylinux2014_x86_64"]
# onnxruntime-gpu hides onnxruntime, which has the same module name. diffusers depends on importlib_metadata, which
# PyTorch does not bring.
WHEELS = (
    "diffusers==0.42.1",
    "importlib_metadata==10.2.0",
    "polygraphy==0.53.6",
    "tensorrt-rtx-cu13-bindings==1.7.1.116",
    "tensorrt-rtx-cu13-libs==1.7.1.116",
    "onnxruntime-gpu==1.31.1",
)
SOURCES = ("tensorrt-rtx-cu13==1.7.1.116",)  # pure Python, and not published as wheels
MANIFEST, INSTALLED = "manifest.json", "installed.json"


def prepare(folder: Path, wheels: Sequence[Path], part_size: int = PART_SIZE) -> None:
    """Cut wheels into parts in `folder`, and write the manifest. Remove parts of earlier wheels."""
    folder.mkdir(parents=True, exist_ok=True)
    records = [_cut(wheel, folder, part_size) for wheel in sorted(wheels, key=lambda path: path.stat().st_size)]
    kept = {part["name"] for record in records for part in record["parts"]}
    for old in folder.glob("*.whl.*"):
        if old.name not in kept:
            old.unlink()
    (folder / MANIFEST).write_text(json.dumps({"wheels": records}, indent=1) + "\n", encoding="utf-8")


def _cut(wheel: Path, folder: Path, part_size: int) -> dict[str, Any]:
    parts: list[dict[str, Any]] = []
    with wheel.open("rb") as file:
        while content := file.read(part_size):
            name = f"{wheel.name}.{len(parts) + 1:03}"
            (folder / name).write_bytes(content)
            parts.append({"name": name, "size": len(content), "sha256": _sha256(content)})
    return {"name": wheel.name, "sha256": _sha256(wheel.read_bytes()), "parts": parts}


def lacking(folder: Path, record: dict[str, Any]) -> Iterator[str]:
    """A line for each missing or altered part of a wheel."""
    for part in record["parts"]:
        file = folder / part["name"]
        if not file.is_file():
            yield f"{part['name']} is missing"
        elif file.stat().st_size != part["size"] or _sha256(file.read_bytes()) != part["sha256"]:
            yield f"{part['name']} is altered: copy it again"


def join(folder: Path, record: dict[str, Any], target: Path) -> Path:
    """Join a wheel in `target`; raise `ValueError` if its hash is wrong."""
    wheel = target / str(record["name"])
    with wheel.open("wb") as file:
        for part in record["parts"]:
            file.write((folder / part["name"]).read_bytes())
    if _sha256(wheel.read_bytes()) != record["sha256"]:
        raise ValueError(f"wrong hash of {wheel.name}, although its parts are right: prepare {folder} again")
    return wheel


def install(folder: Path, target: Path) -> list[str]:
    """Install every complete wheel; return a line for each problem with the others."""
    if not (folder / MANIFEST).is_file():
        return [f"{folder / MANIFEST} is missing: copy it first, or run prepare"]
    records = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["wheels"]
    listed = target / INSTALLED
    done: dict[str, str] = json.loads(listed.read_text(encoding="utf-8")) if listed.is_file() else {}
    problems = []
    for record in records:
        if done.get(record["name"]) == record["sha256"]:
            continue
        found = list(lacking(folder, record))
        problems += found
        if found:
            continue
        with tempfile.TemporaryDirectory() as scratch:
            wheel = join(folder, record, Path(scratch))
            try:
                _pip("install", "--no-index", "--no-deps", "--no-compile", "--upgrade", "--target", target, wheel)
            except subprocess.CalledProcessError:  # pip has printed the reason
                problems.append(f"{wheel.name} cannot be installed with {sys.executable}")
                continue
        done[record["name"]] = record["sha256"]
        listed.write_text(json.dumps(done, indent=1) + "\n", encoding="utf-8")
        print(f"{record['name']} installed", flush=True)
    return problems


def download(folder: Path) -> list[Path]:
    """Download all wheels from the package index."""
    platforms = [word for name in PLATFORMS for word in ("--platform", name)]
    wanted = ["--only-binary", ":all:", "--python-version", PYTHON, "--implementation", "cp", *platforms]
    _pip("download", "--no-deps", "--dest", folder, *wanted, *WHEELS)
    _pip("wheel", "--no-deps", "--wheel-dir", folder, *SOURCES)
    return sorted(folder.glob("*.whl"))


def _pip(*words: str | Path) -> None:
    quiet = ["--quiet", "--disable-pip-version-check"]
    subprocess.run([sys.executable, "-m", "pip", words[0], *quiet, *map(str, words[1:])], check=True)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def main() -> int:
    """The command; its status is 1 if anything is missing."""
    parser = argparse.ArgumentParser(description="Transfer wheels to a machine without a network.")
    commands = parser.add_subparsers(dest="command", required=True)
    cutting = commands.add_parser("prepare", help="download wheels and cut them into parts")
    cutting.add_argument("folder", type=Path)
    cutting.add_argument("--part-size", type=int, default=PART_SIZE, metavar="BYTES", help="default: 24 MB")
    joining = commands.add_parser("install", help="join, check and install the wheels whose parts are there")
    joining.add_argument("folder", type=Path)
    joining.add_argument("target", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "install":
        problems = install(arguments.folder, arguments.target)
        print("\n".join(problems), file=sys.stderr)
        return int(bool(problems))
    with tempfile.TemporaryDirectory() as scratch:
        prepare(arguments.folder, download(Path(scratch)), arguments.part_size)
    for part in sorted(arguments.folder.iterdir()):
        print(f"{part.stat().st_size:>12,}  {part.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
