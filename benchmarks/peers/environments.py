"""The table of peers, and the environment of each.

Knows what to install and how to start a worker, but nothing about measuring. A new peer is a new row. If an environment
cannot be made, the reason is reported and the other peers are still compared.
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
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from benchmarks.common.paths import ROOT

# Settings of one machine's BLAS would slow down some peers and not others; paths belong to this environment.
REMOVED_VARIABLES = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE")
TORCH = ("torch>=2.9,<2.14", "accelerate>=1.10")
BROUGHT_BY_VENV = ("pip", "setuptools", "pkg_resources", "_distutils_hack", "distutils-precedence.pth")


class PeerError(Exception):
    """A peer cannot be compared; the message is the reported reason."""


@dataclass(frozen=True, slots=True)
class Environment:
    """What is installed in an environment.

    Attributes:
        requirements: arguments of `pip install`.
        extra: install this project with that extra.
        without: packages that are removed afterwards.
        given: for what pip cannot install, an environment variable that holds its folder. The same variable with
            "_PYTHON" appended holds its Python; default: python3.
    """

    requirements: tuple[str, ...] = ()
    extra: str | None = None
    without: tuple[str, ...] = ()
    given: str | None = None


@dataclass(frozen=True, slots=True)
class Peer:
    """One row of the comparison.

    Attributes:
        environment: a key of `ENVIRONMENTS`.
        worker: the module of its worker, in this package.
        module: what it imports; its import time is measured.
        model: what it opens: "bundle", "checkpoint", or a key of `CONVERSIONS`.
        device: "cpu" or "cuda".
        options: passed to the worker.
        engines: a key of `CONVERSIONS` that makes the engines for its model.
        full_precision: whether it keeps the precision of the weights that it opens.
    """

    environment: str
    worker: str
    module: str
    model: str
    device: str = "cpu"
    options: Mapping[str, Any] = field(default_factory=dict)
    engines: str | None = None
    full_precision: bool = True


@dataclass(frozen=True, slots=True)
class Conversion:
    """How a checkpoint becomes a peer's model: a command in an environment.

    The command may contain {checkpoint}, {bundle}, {target}, and {size} (of the pictures, in pixels).
    """

    environment: str
    command: tuple[str, ...]

    @property
    def depends_on_size(self) -> bool:
        """Whether each size of pictures needs its own conversion."""
        return any("{size}" in word for word in self.command)


ENVIRONMENTS: Mapping[str, Environment] = MappingProxyType(
    {
        "latentrt": Environment(extra="cpu"),
        "latentrt-openvino": Environment(extra="openvino"),
        "latentrt-cuda": Environment(extra="cuda"),
        "latentrt-tensorrt": Environment(extra="tensorrt-cu13"),
        "latentrt-tensorrt-rtx": Environment(extra="tensorrt-rtx"),
        "diffusers": Environment((*TORCH, "diffusers==0.42.*", "transformers<5.24")),
        # optimum-onnx requires transformers below 4.58. Without the other pins, pip backtracks through every version.
        "optimum-onnx": Environment(
            ("optimum-onnx[onnxruntime]", *TORCH, "transformers==4.57.*", "diffusers==0.35.*"),
        ),
        "optimum-onnx-cuda": Environment(
            ("optimum-onnx[onnxruntime-gpu]", *TORCH, "transformers==4.57.*", "diffusers==0.35.*"),
        ),
        "openvino-genai": Environment(("openvino-genai", "openvino-tokenizers", "pillow", "numpy")),
        # PyPI's torchvision is built for CUDA: with a CPU build of PyTorch, importing transformers fails.
        "openvino-export": Environment(
            ("optimum-intel[openvino]", *TORCH, "diffusers>=0.35"), without=("torchvision",)
        ),
        "stable-diffusion.cpp": Environment(("stable-diffusion-cpp-python", "numpy", "pillow")),
        "nvidia-demo": Environment(given="NVIDIA_DEMO"),
    }
)

_TO_TARGET = ("--task", "text-to-image", "--model", "{checkpoint}", "{target}")
_BUILD = ("latentrt", "build", "{bundle}", "--engines", "{target}", "--height", "{size}", "--width", "{size}")

CONVERSIONS: Mapping[str, Conversion] = MappingProxyType(
    {
        "onnx": Conversion("optimum-onnx", ("optimum-cli", "export", "onnx", *_TO_TARGET)),
        "openvino": Conversion(
            "openvino-export", ("optimum-cli", "export", "openvino", "--weight-format", "fp32", *_TO_TARGET)
        ),
        "tensorrt": Conversion("latentrt-tensorrt", (*_BUILD, "--backend", "tensorrt")),
        "tensorrt-rtx": Conversion("latentrt-tensorrt-rtx", (*_BUILD, "--backend", "tensorrt_rtx")),
    }
)

_DIFFUSERS = ("diffusers", "worker_diffusers", "diffusers", "checkpoint")
_CUDA = {"device": "cuda", "dtype": "float16"}
_OURS = ("worker_latentrt", "latentrt.runtime", "bundle")

# The first row of each device is the reference for the pictures of the others.
PEERS: Mapping[str, Peer] = MappingProxyType(
    {
        "latentrt": Peer("latentrt", *_OURS, options={"backend": "onnxruntime", "device": "cpu"}),
        "latentrt openvino": Peer("latentrt-openvino", *_OURS, options={"backend": "openvino"}),
        "diffusers": Peer(*_DIFFUSERS),
        "diffusers channels-last": Peer(*_DIFFUSERS, options={"channels_last": True}),
        "diffusers bf16": Peer(*_DIFFUSERS, options={"dtype": "bfloat16"}, full_precision=False),
        "diffusers compiled": Peer(*_DIFFUSERS, options={"compile": True}),
        "optimum-onnx": Peer(
            "optimum-onnx", "worker_diffusers", "optimum.onnxruntime", "onnx", options={"optimum": True}
        ),
        "openvino-genai": Peer("openvino-genai", "worker_openvino_genai", "openvino_genai", "openvino"),
        "stable-diffusion.cpp": Peer(
            "stable-diffusion.cpp",
            "worker_stable_diffusion_cpp",
            "stable_diffusion_cpp",
            "checkpoint",
            full_precision=False,  # the weights of convolutions are always fp16
        ),
        "latentrt cuda": Peer("latentrt-cuda", *_OURS, "cuda", {"backend": "onnxruntime", "device": "cuda"}),
        "latentrt tensorrt": Peer("latentrt-tensorrt", *_OURS, "cuda", {"backend": "tensorrt"}, engines="tensorrt"),
        "latentrt tensorrt-rtx": Peer(
            "latentrt-tensorrt-rtx", *_OURS, "cuda", {"backend": "tensorrt_rtx"}, engines="tensorrt-rtx"
        ),
        "diffusers cuda": Peer(*_DIFFUSERS, "cuda", _CUDA),
        "diffusers cuda compiled": Peer(*_DIFFUSERS, "cuda", {**_CUDA, "channels_last": True, "compile": True}),
        "optimum-onnx cuda": Peer(
            *("optimum-onnx-cuda", "worker_diffusers", "optimum.onnxruntime", "onnx", "cuda"),
            {"optimum": True, "device": "cuda"},
        ),
        "NVIDIA's demo": Peer("nvidia-demo", "worker_nvidia_demo", "demo_diffusion", "checkpoint", "cuda"),
    }
)


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
    place = program(folder, name)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(f'#!/bin/sh\nexec {shlex.quote(python)} "$@"\n', encoding="utf-8")
    place.chmod(0o755)


def convert(folder: Path, name: str, places: Mapping[str, Path | int], target: Path) -> float:
    """Convert a checkpoint unless `target` holds the result already; return the seconds of the conversion.

    Args:
        folder: the folder of all environments.
        name: a key of `CONVERSIONS`.
        places: values for the names in the command, except {target}.
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
    words = [word.format(**places, target=target.resolve()) for word in conversion.command]
    start = time.perf_counter()
    child = subprocess.run(
        (program(folder, conversion.environment, words[0]), *words[1:]),
        env=clean_variables(),
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.perf_counter() - start
    if child.returncode:
        raise PeerError(f"conversion to {name} failed: {_last_line(child.stderr)}")
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


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no message"
