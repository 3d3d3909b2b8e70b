"""Checkpoint and bundle without their weights, in one small archive, and the way back.

`pack` leaves the weights out; `restore` draws them again from their seed, and `rejoin` takes those of a checkpoint that
is there. Both put them where the manifest says. If PyTorch draws the same, all is as it was, to the byte. If not,
checkpoint and bundle still belong together, as the manifest gets the hashes of what was written; only weights of at
most 256 bytes, which are inside the graphs, stay as they were. Needs PyTorch to restore, but no library of an export.
"""

import base64
import json
import lzma
import shutil
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from latentrt.runtime import Bundle, BundleError
from latentrt.runtime.bundle.manifest import MANIFEST, Weight
from latentrt.runtime.files import sha256_of_file, written_whole

if TYPE_CHECKING:
    import torch

RECIPE = "recipe.json"
DATA = ".onnx.data"  # how names of files of weights end
SHAPES_FP16 = "shapes-fp16"  # the archive of the embedded model, whose weights the repository has
NORMS = "norms.onnx"  # a graph of `norms.py`, which needs onnx_ir to be made
# What a damaged archive raises.
DAMAGED = (OSError, EOFError, KeyError, ValueError, tarfile.TarError, lzma.LZMAError, BundleError)

Files = Iterator[tuple[str, dict[str, "torch.Tensor"]]]  # of a checkpoint, with their weights by name


@dataclass(frozen=True, slots=True)
class Tensor:
    """A weight of the checkpoint: its file, name and shape. The order of draws is that of the recipe."""

    file: str
    name: str
    shape: Sequence[int]


def archive_of(folder: Path, name: str = "sd15") -> Path:
    """Path of an archive."""
    return folder / f"{name}.tar.xz"


def tensors_in(checkpoint: Path) -> Iterator[Tensor]:
    """The tensors of a checkpoint's files."""
    from safetensors import safe_open

    for file in sorted(checkpoint.rglob("*.safetensors")):
        with safe_open(file, "np") as content:
            for name in content.keys():  # noqa: SIM118 - it is no dict
                yield Tensor(file.relative_to(checkpoint).as_posix(), name, content.get_slice(name).get_shape())


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

    Returns whether the weights are those of the export, to the bit. Raises one of `DAMAGED` for an archive that is.
    """
    with _unpacked(archive, bundle) as (scratch, seed, tensors):
        same = _filled(scratch, _saved(_drawn(seed, tensors), scratch / "checkpoint"))
        for made, target in ((scratch / "checkpoint", checkpoint), (scratch / "bundle", bundle)):
            shutil.rmtree(target, ignore_errors=True)
            made.rename(target)
    return same


def rejoin(archive: Path, checkpoint: Path, bundle: Path) -> bool:
    """Like `restore`, with the weights of a checkpoint that is there, in place of draws."""
    from safetensors.torch import load_file

    with _unpacked(archive, bundle) as (scratch, _, tensors):
        files = dict.fromkeys(tensor.file for tensor in tensors)
        same = _filled(scratch, ((file, load_file(checkpoint / file)) for file in files))
        shutil.rmtree(bundle, ignore_errors=True)
        (scratch / "bundle").rename(bundle)
    return same


@contextmanager
def _unpacked(archive: Path, bundle: Path) -> Iterator[tuple[Path, int, list[Tensor]]]:
    """A folder beside the bundle with what was packed, and the recipe's seed and tensors."""
    with _scratch_beside(bundle) as scratch:
        with tarfile.open(archive) as tar:
            tar.extractall(scratch, filter="data")
        recipe = json.loads((scratch / RECIPE).read_text(encoding="utf-8"))
        yield scratch, recipe["seed"], [Tensor(*row) for row in recipe["tensors"]]


def _filled(scratch: Path, files: Files) -> bool:
    """Put the weights into the unpacked bundle; return whether they are those of the export."""
    recipe = json.loads((scratch / RECIPE).read_text(encoding="utf-8"))
    manifest = json.loads((scratch / "bundle" / MANIFEST).read_text(encoding="utf-8"))
    with _Filled(scratch / "bundle", manifest, recipe["constants"]) as filled:
        for file, weights in files:
            filled.put(file.partition("/")[0], weights)
    same = _with_new_hashes(scratch / "bundle", manifest)
    Bundle.open(scratch / "bundle")
    return same


def _drawn(seed: int, tensors: Sequence[Tensor]) -> Files:
    """Each file of the checkpoint with its float16 weights, as `make_checkpoint` draws them."""
    import torch

    from benchmarks.common.make_checkpoint import random_weight

    generator = torch.Generator().manual_seed(seed)
    for file in dict.fromkeys(tensor.file for tensor in tensors):
        of_file = (tensor for tensor in tensors if tensor.file == file)
        yield file, {t.name: random_weight(t.name, torch.Size(t.shape), generator).half() for t in of_file}


def _saved(files: Files, folder: Path) -> Files:
    """The same files, each written to a folder on the way."""
    from safetensors.torch import save_file

    for file, weights in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        save_file(weights, folder / file, metadata={"format": "pt"})
        yield file, weights


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
        entry["sha256"] = sha256_of_file(bundle / name)
    same = json.dumps(manifest["files"]) == before
    if not same:
        (bundle / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    return same


@contextmanager
def _scratch_beside(path: Path) -> Iterator[Path]:
    """A folder on the same disk; what a killed process left of it is removed first."""
    scratch = made_folder(path.parent) / f".{path.name}.partial"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def made_folder(folder: Path) -> Path:
    """The folder, which now exists."""
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Without times, owners and modes of the machine."""
    member.mtime, member.mode = 0, 0o644
    member.uid, member.gid, member.uname, member.gname = 0, 0, "", ""
    return member
