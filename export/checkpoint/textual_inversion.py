"""Textual inversions (arXiv 2208.01618): files of vectors, and the word that calls them.

Knows the files of diffusers, of the web UI and of SDXL trainers; knows nothing of tokenizers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from latentrt.runtime.errors import CheckpointError

from .source import EmbeddingFile
from .weight_files import TensorFiles, objects_from_pickle, weights_from_file

# Names in files for two text encoders. A file for one has a single tensor of any name.
_SDXL = {"clip_l": "text_encoder", "clip_g": "text_encoder_2"}


@dataclass(frozen=True, slots=True, eq=False)
class Embedding:
    """A word, and its vectors (n, D) for each text encoder; n is the same for all."""

    path: Path
    word: str
    vectors: Mapping[str, torch.Tensor]

    @property
    def count(self) -> int:
        """How many ids the word stands for."""
        return len(next(iter(self.vectors.values())))


def read_embedding(file: EmbeddingFile, widths: Mapping[str, int], *, allow_pickle: bool) -> Embedding:
    """Read a file; raises `CheckpointError` where it does not fit the text encoders.

    The word is the given one, else the file's own (`<cat-toy>`, or the name in the web UI's pickles), else the file's
    name without suffix, as in the web UI.

    Args:
        widths: text encoder -> size of its vectors.
    """
    path = Path(file.path)
    own, tensors = _named_vectors(path, allow_pickle=allow_pickle)
    word = file.token or own or path.stem
    if not word or word.split() != [word]:
        raise CheckpointError(f"{path}: {word!r} is no word: name one with --embedding FILE:WORD")
    if set(tensors) != set(widths):
        raise CheckpointError(
            f"{path} holds vectors for {' and '.join(sorted(tensors))}, but the checkpoint has "
            f"{' and '.join(sorted(widths))}. Is it for another family of models?"
        )
    vectors = {}
    for part, tensor in tensors.items():
        rows = tensor[None] if tensor.ndim == 1 else tensor
        if rows.ndim != 2 or not len(rows) or rows.shape[1] != widths[part] or not rows.is_floating_point():
            raise CheckpointError(
                f"{path}: its vectors have the shape {tuple(tensor.shape)} and the type {tensor.dtype}; the {part} "
                f"takes (vectors, {widths[part]}). Is it for another family of models?"
            )
        vectors[part] = rows
    if len({len(rows) for rows in vectors.values()}) > 1:
        raise CheckpointError(f"{path} has a different number of vectors for each text encoder")
    return Embedding(path, word, vectors)


def _named_vectors(path: Path, *, allow_pickle: bool) -> tuple[str | None, dict[str, torch.Tensor]]:
    """The word in the file, if there is one, and tensors by text encoder."""
    content: Mapping[str, Any]
    if path.suffix == ".safetensors" or not allow_pickle:
        content = weights_from_file(path, allow_pickle=False)
        assert isinstance(content, TensorFiles)
    else:
        content = objects_from_pickle(path)
    if set(content) == set(_SDXL):
        return None, {_SDXL[name]: content[name] for name in content}
    if "string_to_param" in content:  # the web UI's pickles
        name, inner = content.get("name"), content["string_to_param"]
        content = {name if isinstance(name, str) else "": next(iter(inner.values())) if inner else None}
    if len(content) == 1:
        name, tensor = next(iter(content.items()))
        if isinstance(tensor, torch.Tensor):
            return None if name == "emb_params" else name, {"text_encoder": tensor}
    raise CheckpointError(
        f"{path} is no textual inversion: expected one tensor, or clip_l and clip_g, and not "
        f"{', '.join(map(str, list(content)[:4]))}"
    )
