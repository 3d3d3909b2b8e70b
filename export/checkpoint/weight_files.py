"""Weight files: safetensors, single or sharded, and pickles if the user allows them.

Knows files, headers and tensor names; knows nothing of modules. Tensors are memory-mapped: nothing is read before it is
used, and code in a file is never executed.
"""

import json
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open

from latentrt.runtime.errors import CheckpointError

VARIANTS = (None, "fp16", "bf16", "fp32", "non_ema", "ema")  # in the order of preference
# safetensors' names of dtypes -> PyTorch's.
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
}
_PICKLES = (".bin", ".ckpt", ".pt", ".pth")
_PICKLE_MARKS = (b"PK\x03\x04", b"\x80")
_PICKLE_REFUSED = (
    "a pickle, which can run code when it is opened. Convert it to safetensors, or open it with --allow-pickle: then "
    "PyTorch loads only tensors and refuses everything else"
)


class TensorFiles(Mapping[str, torch.Tensor]):
    """The tensors of safetensors files by name; `metadata` is the first file's.

    Each tensor is mapped separately, so that its pages are released after its conversion. With one map per file, the
    whole file would stay resident beside its converted copy.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self._files: dict[str, Path] = {}
        self._headers: dict[str, tuple[list[int], str]] = {}
        self.metadata: dict[str, str] = {}
        for file in files:
            with _open_safetensors(file) as opened:
                self.metadata = self.metadata or opened.metadata() or {}
                for name in opened.keys():  # noqa: SIM118
                    if name in self._files:
                        raise CheckpointError(f"{file} contains {name}, which another shard also contains")
                    self._files[name] = file
                    content = opened.get_slice(name)
                    self._headers[name] = content.get_shape(), content.get_dtype()

    def header(self, name: str) -> torch.Tensor:
        """A tensor on the meta device with the shape and dtype of the stored one; reads nothing."""
        shape, dtype = self._headers[name]
        if dtype not in _DTYPES:
            raise CheckpointError(f"{self._files[name]}: {name} has dtype {dtype}, which is not supported")
        return torch.empty(shape, dtype=_DTYPES[dtype], device="meta")

    def __getitem__(self, name: str) -> torch.Tensor:
        with _open_safetensors(self._files[name]) as opened:
            tensor: torch.Tensor = opened.get_tensor(name)
            return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


class RenamedTensors(Mapping[str, torch.Tensor]):
    """Tensors under other names; `names` maps new names to old ones."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], names: Mapping[str, str]) -> None:
        self._tensors, self._names = tensors, names

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._tensors[self._names[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


@dataclass(frozen=True, slots=True)
class FoundWeights:
    """The weight files of a component, the index of its shards, and the variant (such as "fp16")."""

    files: tuple[Path, ...]
    index: Path | None
    variant: str | None

    @property
    def all_files(self) -> list[Path]:
        """The weight files, and the index if there is one."""
        return [*self.files, *([self.index] if self.index else [])]

    def open(self) -> Mapping[str, torch.Tensor]:
        """All tensors by name; raises `CheckpointError` for a malformed file."""
        if self.files[0].suffix == ".safetensors":
            return TensorFiles(self.files)
        return {name: tensor for file in self.files for name, tensor in tensors_from_pickle(file).items()}


def find_variants(folder: Path, stem: str, *, allow_pickle: bool) -> dict[str | None, FoundWeights]:
    """Variant -> the weights in a component's folder in the diffusers format, safetensors before pickles.

    Args:
        stem: file name without variant and suffix, such as "diffusion_pytorch_model".

    Raises `CheckpointError` if there are none.
    """
    kinds = [(stem, "safetensors")]
    if allow_pickle:
        kinds.append(("pytorch_model" if stem == "model" else stem, "bin"))
    for name, suffix in kinds:
        found = {variant: _files_of_variant(folder, name, suffix, variant) for variant in VARIANTS}
        if any(found.values()):
            return {variant: weights for variant, weights in found.items() if weights is not None}
    if pickles := sorted(file.name for file in folder.glob("*") if file.suffix in _PICKLES):
        raise CheckpointError(f"{folder} contains only pickled weights: {pickles[0]} is {_PICKLE_REFUSED}")
    missing = folder / f"{stem}.safetensors"
    dangling = " (it is a link to a missing file)" if missing.is_symlink() else ""
    raise CheckpointError(f"{missing} is missing{dangling}")


def _files_of_variant(folder: Path, name: str, suffix: str, variant: str | None) -> FoundWeights | None:
    infix = f".{variant}" if variant else ""
    whole = folder / f"{name}{infix}.{suffix}"
    if whole.is_file():
        return FoundWeights((whole,), None, variant)
    for index in (f"{name}.{suffix}.index{infix}.json", f"{name}{infix}.{suffix}.index.json"):
        if (folder / index).is_file():
            return FoundWeights(_shards(folder / index, suffix), folder / index, variant)
    return None


Found = TypeVar("Found")


def consistent(found: Mapping[str, Mapping[str | None, Found]]) -> dict[str, Found]:
    """One variant for each component: the same for all if there is such a one, the preferred one first.

    Otherwise those that diffusers loads with `variant="fp16"`: of each component the fp16 files if it has some.

    Args:
        found: component -> variant -> its files.
    """
    for variant in VARIANTS:
        if all(variant in own for own in found.values()):
            return {part: own[variant] for part, own in found.items()}
    order = sorted(VARIANTS, key=lambda variant: variant != "fp16")
    return {part: next(own[variant] for variant in order if variant in own) for part, own in found.items()}


def weights_from_file(path: Path, *, allow_pickle: bool) -> Mapping[str, torch.Tensor]:
    """The tensors of a single file by name; raises `CheckpointError` for a missing, malformed or refused file."""
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist or is not a file")
    if path.suffix == ".safetensors":
        return TensorFiles([path])
    if path.suffix not in _PICKLES:
        raise CheckpointError(f"{path} is not a weight file; expected .safetensors, {', '.join(_PICKLES)}")
    if not allow_pickle:
        raise CheckpointError(f"{path} is {_PICKLE_REFUSED}")
    return tensors_from_pickle(path)


def tensors_from_pickle(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a pickled state dict by name, read with PyTorch's `weights_only` unpickler."""
    content = objects_from_pickle(path)
    inner = content.get("state_dict", content)
    tensors = {name: t for name, t in inner.items() if isinstance(t, torch.Tensor)} if isinstance(inner, dict) else {}
    if not tensors:
        raise CheckpointError(f"{path} contains no named tensors")
    return tensors


def objects_from_pickle(path: Path) -> dict[str, Any]:
    """A pickled dict of tensors and plain values; raises `CheckpointError` for other content, without executing it."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # the unpickler raises exceptions of any type
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        holds = f": it contains {named[1]}" if named else ""
        raise CheckpointError(
            f"{path} cannot be read as a pickle of tensors only{holds}. Convert it to safetensors with the program "
            "that made it"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} should contain named tensors, not {type(content).__name__}")
    return content


def read_json(file: Path, hint: str = "") -> dict[str, Any]:
    """Read a JSON object; raises `CheckpointError`, with `hint` appended if the file is missing."""
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{file} is missing.{hint and ' '}{hint}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{file} should contain an object, not {type(data).__name__}")
    return data


def _shards(index: Path, suffix: str) -> tuple[Path, ...]:
    """The shards that an index names. They must be plain names, so that an index cannot refer to other folders."""
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise CheckpointError(f"{index} lists no weight files in 'weight_map'")
    shards = sorted(set(names.values()))
    for name in shards:
        if Path(name).name != name or "\\" in name or not name.endswith(f".{suffix}"):
            raise CheckpointError(f"{index} lists {name!r}; shards must be .{suffix} files in the same folder")
        if not (index.parent / name).is_file():
            raise CheckpointError(f"{index.parent / name} is missing; {index.name} lists it")
    return tuple(index.parent / name for name in shards)


def _open_safetensors(file: Path) -> Any:
    """Open a file; the library checks the header: its size and every offset, without gaps, overlaps or truncation."""
    try:
        return safe_open(file, "pt")
    except (SafetensorError, OSError, ValueError) as error:
        with file.open("rb") as opened:
            pickled = opened.read(4).startswith(_PICKLE_MARKS)
        hint = f". It looks like {_PICKLE_REFUSED}" if pickled else ""
        raise CheckpointError(f"{file} is not a valid safetensors file: {error}{hint}") from error
