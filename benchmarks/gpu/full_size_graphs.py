"""Graphs of full size without their weights, small enough to be carried to a machine without an exporter.

    python -m benchmarks.gpu.full_size_graphs prepare FOLDER [--size sd15]    # needs the extra `export`, and minutes
    python -m benchmarks.gpu.full_size_graphs restore ARCHIVE CHECKPOINT BUNDLE         # needs PyTorch, and seconds

`prepare` makes a random checkpoint, exports it, and packs both without their weights into FOLDER/SIZE.tar.xz. The
weights are draws of a seed, so `restore` draws them again and puts them where the manifest says: with the PyTorch of
`prepare`, checkpoint and bundle are those of the export to the byte. With another whose draws differ, they still belong
together, as the manifest gets the hashes of what was written; only weights of at most 256 bytes, which are inside the
graphs, stay those of the export.
"""

import argparse
import base64
import hashlib
import json
import shutil
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from latentrt.runtime import Bundle
from latentrt.runtime.bundle.manifest import MANIFEST, Weight
from latentrt.runtime.files import written_whole

if TYPE_CHECKING:
    import torch

RECIPE = "recipe.json"
DATA = ".onnx.data"  # how names of files of weights end
PRECISION = "fp16"


@dataclass(frozen=True, slots=True)
class Tensor:
    """A weight of the checkpoint: its file, name and shape. The order of draws is that of the recipe."""

    file: str
    name: str
    shape: Sequence[int]


def archive_of(folder: Path, size: str = "sd15") -> Path:
    """Where `prepare` puts the archive of a size."""
    return folder / f"{size}.tar.xz"


def prepare(folder: Path, size: str, seed: int = 0) -> Path:
    """Export a random checkpoint of a size of `make_checkpoint`, and pack both; return the archive."""
    import torch

    from benchmarks.common.make_checkpoint import make_checkpoint, tensors_of
    from latentrt.export import ExportOptions, export_bundle

    with tempfile.TemporaryDirectory(dir=_made(folder)) as scratch:
        checkpoint, bundle = Path(scratch) / f"{size}.checkpoint", Path(scratch) / size
        make_checkpoint(checkpoint, size, torch.float16, seed)
        export_bundle(checkpoint, bundle, ExportOptions(precision=PRECISION))
        tensors = [Tensor(file, name, list(shape)) for file, name, shape in tensors_of(size)]
        pack(checkpoint, bundle, archive_of(folder, size), seed=seed, tensors=tensors)
    return archive_of(folder, size)


def pack(checkpoint: Path, bundle: Path, archive: Path, *, seed: int, tensors: Iterable[Tensor]) -> None:
    """Write the archive: every file but the weights, and a recipe for them. The same content gives the same bytes."""
    opened = Bundle.open(bundle)
    recipe = {
        "seed": seed,
        "tensors": [[tensor.file, tensor.name, list(tensor.shape)] for tensor in tensors],
        "constants": {name: list(constants(opened, name)) for name in opened.manifest.files if name.endswith(DATA)},
    }
    with tempfile.TemporaryDirectory() as scratch, written_whole(archive) as partial:
        (Path(scratch) / RECIPE).write_text(json.dumps(recipe), encoding="utf-8")
        with tarfile.open(partial, "w:xz") as tar:
            tar.add(Path(scratch) / RECIPE, RECIPE, filter=_plain)
            for root, name, weights in ((bundle, "bundle", DATA), (checkpoint, "checkpoint", ".safetensors")):
                for file in sorted(root.rglob("*")):
                    if file.is_file() and not file.name.endswith(weights):
                        tar.add(file, f"{name}/{file.relative_to(root).as_posix()}", filter=_plain)


def constants(bundle: Bundle, data: str) -> Iterator[tuple[int, str]]:
    """Offset and base64 of what is in a file of weights, but is no parameter of the checkpoint."""
    content = np.memmap(bundle.file(data), np.uint8, "r")
    end = 0
    for start, stop in [*sorted(_places(bundle, data)), (len(content), len(content))]:
        if content[end:start].any():
            yield end, base64.b64encode(content[end:start].tobytes()).decode()
        end = max(end, stop)


def _places(bundle: Bundle, data: str) -> Iterator[tuple[int, int]]:
    """First byte and end of each parameter in a file of weights."""
    widths = {"float32": 4, "float16": 2, "bfloat16": 2}
    for use in (use for uses in bundle.manifest.weights.values() for use in uses):
        if use.offset is not None and f"{bundle.graph(use.graph).file}.data" == data:
            yield use.offset, use.offset + int(np.prod(use.shape)) * widths[use.stored_dtype]


def restore(archive: Path, checkpoint: Path, bundle: Path) -> bool:
    """Make the checkpoint and the bundle, which replace older ones when complete.

    Returns whether the weights are those of the export, to the bit. Raises `tarfile.TarError`, `OSError`, `EOFError` or
    `lzma.LZMAError` for an archive that is damaged.
    """
    with _scratch_beside(bundle) as scratch:
        with tarfile.open(archive) as tar:
            tar.extractall(scratch, filter="data")
        recipe = json.loads((scratch / RECIPE).read_text(encoding="utf-8"))
        manifest = json.loads((scratch / "bundle" / MANIFEST).read_text(encoding="utf-8"))
        with _Filled(scratch / "bundle", manifest, recipe["constants"]) as filled:
            for file, weights in _drawn(recipe["seed"], [Tensor(*row) for row in recipe["tensors"]]):
                _save(weights, scratch / "checkpoint" / file)
                filled.put(file.partition("/")[0], weights)
        same = _with_new_hashes(scratch / "bundle", manifest)
        Bundle.open(scratch / "bundle")
        for made, target in ((scratch / "checkpoint", checkpoint), (scratch / "bundle", bundle)):
            shutil.rmtree(target, ignore_errors=True)
            made.rename(target)
    return same


def _drawn(seed: int, tensors: Sequence[Tensor]) -> Iterator[tuple[str, dict[str, "torch.Tensor"]]]:
    """Each file of the checkpoint with its float16 weights, as `make_checkpoint` draws them."""
    import torch

    from benchmarks.common.make_checkpoint import random_weight

    generator = torch.Generator().manual_seed(seed)
    for file in dict.fromkeys(tensor.file for tensor in tensors):
        of_file = (tensor for tensor in tensors if tensor.file == file)
        yield file, {t.name: random_weight(t.name, torch.Size(t.shape), generator).half() for t in of_file}


def _save(weights: dict[str, "torch.Tensor"], file: Path) -> None:
    from safetensors.torch import save_file

    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(weights, file, metadata={"format": "pt"})


class _Filled:
    """The files of weights of a bundle, mapped while they are filled."""

    def __init__(self, bundle: Path, manifest: dict[str, Any], kept: dict[str, list[tuple[int, str]]]) -> None:
        self._uses: dict[str, list[Weight]] = {
            name: [Weight(**{**use, "shape": tuple(use["shape"])}) for use in uses]
            for name, uses in manifest["weights"].items()
        }
        self._graphs = manifest["graphs"]
        self._data = {
            name: np.memmap(bundle / name, np.uint8, "w+", shape=(entry["size"],))
            for name, entry in manifest["files"].items()
            if name.endswith(DATA)
        }
        for name, rows in kept.items():
            for offset, text in rows:
                self._write(name, offset, np.frombuffer(base64.b64decode(text), np.uint8))

    def put(self, part: str, weights: dict[str, "torch.Tensor"]) -> None:
        """Put the weights of a component of the checkpoint everywhere that they belong."""
        import torch

        for name, weight in weights.items():
            # The manifest leaves a level of CLIP's text model out.
            for use in self._uses.get(f"{part}.{name}".replace(".text_model.", "."), ()):
                if use.offset is not None:
                    placed = (weight.t() if use.transposed else weight).to(getattr(torch, use.stored_dtype))
                    content = placed.contiguous().view(torch.uint8).numpy().ravel()
                    self._write(f"{self._graphs[use.graph]['file']}.data", use.offset, content)

    def _write(self, name: str, offset: int, content: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
        self._data[name][offset : offset + len(content)] = content

    def __enter__(self) -> "_Filled":
        return self

    def __exit__(self, *_: object) -> None:
        for data in self._data.values():
            data.flush()
        self._data.clear()


def _with_new_hashes(bundle: Path, manifest: dict[str, Any]) -> bool:
    """Write the manifest with the hashes of the files; return whether they were right before."""
    before = json.dumps(manifest["files"])
    for name, entry in manifest["files"].items():
        with (bundle / name).open("rb") as file:
            entry["sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
    same = json.dumps(manifest["files"]) == before
    if not same:
        (bundle / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    return same


@contextmanager
def _scratch_beside(path: Path) -> Iterator[Path]:
    """A folder on the same disk; what a killed process left of it is removed first."""
    scratch = _made(path.parent) / f".{path.name}.partial"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Without times, owners and modes of the machine."""
    member.mtime, member.mode = 0, 0o644
    member.uid, member.gid, member.uname, member.gname = 0, 0, "", ""
    return member


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description="Carry graphs of full size without their weights.")
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("prepare", help="make, export and pack a random checkpoint")
    packing.add_argument("folder", type=Path)
    packing.add_argument("--size", choices=("sd15", "sd21", "sdxl", "medium"), default="sd15", help="default: sd15")
    making = commands.add_parser("restore", help="make the checkpoint and the bundle with the same weights")
    for name in ("archive", "checkpoint", "bundle"):
        making.add_argument(name, type=Path)
    arguments = parser.parse_args()
    start = time.perf_counter()
    if arguments.command == "prepare":
        archive = prepare(arguments.folder, arguments.size)
        print(f"{archive}: {archive.stat().st_size:,} bytes in {time.perf_counter() - start:.1f} s")
    else:
        same = restore(arguments.archive, arguments.checkpoint, arguments.bundle)
        what = "the weights of the export" if same else "other weights than the export, as PyTorch draws others here"
        print(f"{arguments.bundle}: {what}, in {time.perf_counter() - start:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
