"""Textual inversions (arXiv 2208.01618): read embedding vectors and their placeholder word from files.

Knows the file formats of diffusers, the web UI, SDXL trainers, and of LoRAs that carry words; knows nothing of
tokenizers.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from latentrt.runtime.errors import CheckpointError

from .source import EmbeddingFile
from .weight_files import objects_from_pickle, weights_from_file

# Tensor names -> the text encoder. A file for one text encoder may also have a single tensor with any other name.
_PARTS = {
    "clip_l": "text_encoder",
    "clip_g": "text_encoder_2",
    "text_encoders_0": "text_encoder",
    "text_encoders_1": "text_encoder_2",
}
# In LoRA files: the word, and what the tensor is called in a file of its own.
_BUNDLED = re.compile(r"bundle_emb\.(?P<word>.+)\.(?P<name>string_to_param\.\*|clip_l|clip_g)")


@dataclass(frozen=True, slots=True, eq=False)
class Embedding:
    """A placeholder word and its vectors (n, D) for each text encoder; n is the same for all."""

    path: Path
    word: str
    vectors: Mapping[str, torch.Tensor]

    @property
    def count(self) -> int:
        """Number of token ids of the word."""
        return len(next(iter(self.vectors.values())))


def read_embedding(file: EmbeddingFile, widths: Mapping[str, int], *, allow_pickle: bool) -> Embedding:
    """Read a file; raises `CheckpointError` if it does not fit the text encoders.

    The word is the given one, else the one in the file (`<cat-toy>`, or the name in the web UI's pickles), else the
    file's name without suffix, as in the web UI.

    Args:
        widths: text encoder -> hidden size.
    """
    path = Path(file.path)
    own, tensors = _named_vectors(path, file.token, allow_pickle=allow_pickle)
    word = file.token or own or path.stem
    if not word or word.split() != [word]:
        raise CheckpointError(f"{path}: {word!r} is not a single word; choose one with --embedding FILE:WORD")
    if set(tensors) != set(widths):
        raise CheckpointError(
            f"{path} has vectors for {' and '.join(sorted(tensors))}, but the checkpoint has "
            f"{' and '.join(sorted(widths))}. Was it trained on another family of models?"
        )
    vectors = {}
    for part, tensor in tensors.items():
        rows = tensor[None] if tensor.ndim == 1 else tensor
        if rows.ndim != 2 or not len(rows) or rows.shape[1] != widths[part] or not rows.is_floating_point():
            raise CheckpointError(
                f"{path}: the vectors have shape {tuple(tensor.shape)} and dtype {tensor.dtype}; the {part} expects "
                f"floats of shape (vectors, {widths[part]}). Was it trained on another family of models?"
            )
        vectors[part] = rows
    if len({len(rows) for rows in vectors.values()}) > 1:
        raise CheckpointError(f"{path} has different numbers of vectors for the two text encoders")
    return Embedding(path, word, vectors)


def _named_vectors(path: Path, token: str | None, *, allow_pickle: bool) -> tuple[str | None, dict[str, torch.Tensor]]:
    """The word in the file, or None, and text encoder -> tensor; `token` chooses among several words."""
    content: Mapping[str, Any]
    if path.suffix == ".safetensors" or not allow_pickle:
        content = weights_from_file(path, allow_pickle=False)
    else:
        content = objects_from_pickle(path)
    own = None
    if bundled := _bundled(content):
        own = token if token in bundled else next(iter(bundled))
        if len(bundled) > 1 and token not in bundled:
            words = ", ".join(map(repr, bundled))
            raise CheckpointError(f"{path} has {len(bundled)} words: {words}; choose one with --embedding FILE:WORD")
        content = {name: content[full] for name, full in bundled[own].items()}
    if behind := [name for name in map(str, content) if name.endswith("_out") and name[:-4] in _PARTS]:
        raise CheckpointError(
            f"{path} has vectors that are added behind the text encoder ({', '.join(behind)}), which is not supported. "
            "OneTrainer leaves them out if output embeddings are off"
        )
    if content and set(content) <= set(_PARTS):
        return own, {_PARTS[name]: content[name] for name in content}
    if "string_to_param" in content:  # the web UI's pickles
        name, inner = content.get("name"), content["string_to_param"]
        inner = inner if isinstance(inner, Mapping) else {}
        content = {name if isinstance(name, str) else "": next(iter(inner.values()), None)}
    if len(content) == 1:
        name, tensor = next(iter(content.items()))
        if isinstance(tensor, torch.Tensor):
            return own or (None if name == "emb_params" else str(name)), {"text_encoder": tensor}
    raise CheckpointError(
        f"{path} is not a textual inversion: expected one tensor, or clip_l and clip_g, but found "
        f"{', '.join(map(str, list(content)[:4]))}"
    )


def _bundled(content: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Word -> name in a file of its own -> name in this file, for the embeddings that come with a LoRA."""
    words: dict[str, dict[str, str]] = {}
    for full in content:
        if match := _BUNDLED.fullmatch(str(full)):
            words.setdefault(match["word"], {})[match["name"]] = full
    return words
