"""Wheels for a machine with a GPU and without a network.

    python -m benchmarks.gpu.wheels prepare FOLDER           # with a network: download wheels and cut them into parts
    python -m benchmarks.gpu.wheels install FOLDER TARGET    # without: join, check and install them

FOLDER holds a folder for each transfer, 1, 2 and so on, with a copy of `manifest.json` and parts that fill the transfer
beside the light tree (`light.py`). The CUDA library of ONNX Runtime keeps the code of one GPU only (`slim.py`).
`install` names missing and altered parts, installs every complete wheel, and can be called again when more parts have
arrived; parts of what it has installed need not be there any more. Wheels are installed into TARGET, a folder to put
first on PYTHONPATH; existing packages are not changed. For Python 3.12 on 64-bit Linux.

Standard library and pip only, as `install` runs before anything is installed; `prepare` also needs pyelftools.
"""

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .light import LIMIT, light_bytes

MARGIN = 500_000  # bytes of a transfer for the manifest, and for changes of the tree
PYTHON = "3.12"
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in (17, 24, 27, 28, 31, 34, 35)] + ["manylinux2014_x86_64"]
# In the order in which they are needed there. onnxruntime-gpu hides onnxruntime, which has the same module name.
# Rewriting graphs and counting operations need onnx, and diffusers importlib_metadata; PyTorch brings the rest.
WHEELS = (
    "onnxruntime-gpu==1.31.1",
    "ml_dtypes==0.5.4",
    "protobuf==6.33.6",
    "onnx==1.23.2",
    "onnx_ir==1.1.0",
    "importlib_metadata==10.2.0",
    "diffusers==0.42.1",
    "polygraphy==0.53.6",
    "tensorrt-rtx-cu13-bindings==1.7.1.116",
    "tensorrt-rtx-cu13-libs==1.7.1.116",
)
SOURCES = ("tensorrt-rtx-cu13==1.7.1.116",)  # pure Python, and not published as wheels
MANIFEST, INSTALLED = "manifest.json", "installed.json"


def prepare(folder: Path, wheels: Sequence[Path], room: int) -> None:
    """Cut wheels, in their order, into parts that fill transfers of `room` bytes; replace what was prepared before."""
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    records, number, left = [], 1, room
    for wheel in wheels:
        parts: list[dict[str, Any]] = []
        with wheel.open("rb") as file:
            while content := file.read(left):
                name = f"{wheel.name}.{len(parts) + 1:03}"
                (partial / str(number)).mkdir(parents=True, exist_ok=True)
                (partial / str(number) / name).write_bytes(content)
                parts.append({"name": name, "size": len(content), "sha256": _sha256(content)})
                left -= len(content)
                if not left:
                    number, left = number + 1, room
        records.append({"name": wheel.name, "sha256": _sha256(wheel.read_bytes()), "parts": parts})
    for transfer in partial.iterdir():
        (transfer / MANIFEST).write_text(json.dumps({"wheels": records}, indent=1) + "\n", encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def lacking(folder: Path, record: dict[str, Any]) -> Iterator[str]:
    """A line for each missing or altered part of a wheel."""
    for part in record["parts"]:
        file = next(folder.glob(f"*/{part['name']}"), None)
        if file is None:
            yield f"{part['name']} is missing"
        elif file.stat().st_size != part["size"] or _sha256(file.read_bytes()) != part["sha256"]:
            yield f"{part['name']} is altered: copy it again"


def join(folder: Path, record: dict[str, Any], target: Path) -> Path:
    """Join a wheel in `target`; raise `ValueError` if its hash is wrong."""
    wheel = target / str(record["name"])
    with wheel.open("wb") as file:
        for part in record["parts"]:
            file.write(next(folder.glob(f"*/{part['name']}")).read_bytes())
    if _sha256(wheel.read_bytes()) != record["sha256"]:
        raise ValueError(f"wrong hash of {wheel.name}, although its parts are right: prepare {folder} again")
    return wheel


def install(folder: Path, target: Path) -> list[str]:
    """Install every complete wheel; return a line for each problem with the others."""
    manifests = {file.read_text(encoding="utf-8") for file in folder.glob(f"*/{MANIFEST}")}
    if len(manifests) != 1:
        return [f"{folder} has {len(manifests)} different lists of wheels, expected one: transfer its folders again"]
    records = json.loads(manifests.pop())["wheels"]
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
    """Download all wheels from the package index; returns them in the order in which they are needed."""
    platforms = [word for name in PLATFORMS for word in ("--platform", name)]
    wanted = ["--only-binary", ":all:", "--python-version", PYTHON, "--implementation", "cp", *platforms]
    _pip("download", "--no-deps", "--dest", folder, *wanted, *WHEELS)
    _pip("wheel", "--no-deps", "--wheel-dir", folder, *SOURCES)
    found = {_distribution(file.name.split("-")[0]): file for file in folder.glob("*.whl")}
    return [found[_distribution(wanted.split("==")[0])] for wanted in (*WHEELS, *SOURCES)]


def _distribution(name: str) -> str:
    return name.lower().replace("-", "_")


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
    cutting.add_argument(
        "--gpu",
        default="9.0",
        metavar="X.Y",
        help="keep only the code of this compute capability; all keeps everything",
    )
    cutting.add_argument("--transfer", type=int, default=LIMIT, metavar="BYTES", help=f"default: {LIMIT:,}")
    joining = commands.add_parser("install", help="join, check and install the wheels whose parts are there")
    joining.add_argument("folder", type=Path)
    joining.add_argument("target", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "install":
        problems = install(arguments.folder, arguments.target)
        print("\n".join(problems), file=sys.stderr)
        return int(bool(problems))
    return _prepare(arguments.folder, arguments.gpu, arguments.transfer)


def _prepare(folder: Path, gpu: str, transfer: int) -> int:
    from .slim import pack

    room = transfer - light_bytes(Path.cwd()) - MARGIN
    if room <= 0:
        print(f"a transfer of {transfer:,} bytes has no room beside the light tree", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as scratch:
        packed = Path(scratch) / "packed"
        packed.mkdir()
        wheels = []
        for wheel in download(Path(scratch)):
            wheels.append(packed / wheel.name)
            # TensorRT for RTX holds its kernels in a form of its own.
            pack(wheel, wheels[-1], gpu if gpu != "all" and wheel.name.startswith("onnxruntime") else None)
            print(f"{wheels[-1].stat().st_size:>12,} of {wheel.stat().st_size:>12,} bytes  {wheel.name}", flush=True)
        prepare(folder, wheels, room)
    for transfer in sorted(folder.iterdir(), key=lambda path: int(path.name)):
        files = sorted(transfer.iterdir())
        print(f"transfer {transfer.name}: {sum(file.stat().st_size for file in files):,} bytes")
        for file in files:
            print(f"{file.stat().st_size:>12,}  {file.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
