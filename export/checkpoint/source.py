"""What a user wants exported: a checkpoint and what to put into it. Names and paths only; opens nothing."""

from dataclasses import dataclass
from pathlib import Path

from latentrt.runtime.errors import CheckpointError
from latentrt.runtime.weights import file_and_weight

PREDICTION_TYPES = ("epsilon", "v_prediction")


@dataclass(frozen=True, slots=True)
class LoraFile:
    """A LoRA to merge, and how strongly."""

    path: str
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class EmbeddingFile:
    """A textual inversion to add, and the word that calls it; None is the file's own."""

    path: str
    token: str | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """A checkpoint, and what is put into it before the export. Can be written as JSON for a child process.

    Attributes:
        checkpoint: folder in the diffusers format, single file in the original format, or hub id (`org/name`).
        name: for people; None is the last part of `checkpoint`.
        config: folder in the diffusers format whose configs, scheduler and tokenizer a single file goes with; None is
            those of the family's public checkpoint.
        prediction_type: what the UNet predicts, where the checkpoint does not say it, or says it wrongly.
        vae: folder or file of a VAE in the place of the checkpoint's own.
        allow_pickle: open pickled weights, too, with PyTorch's restricted unpickler.
    """

    checkpoint: str
    name: str | None = None
    config: str | None = None
    prediction_type: str | None = None
    vae: str | None = None
    loras: tuple[LoraFile, ...] = ()
    embeddings: tuple[EmbeddingFile, ...] = ()
    allow_pickle: bool = False

    def __post_init__(self) -> None:
        if self.prediction_type not in (None, *PREDICTION_TYPES):
            raise CheckpointError(
                f"prediction type {self.prediction_type!r} is not known: choose one of {', '.join(PREDICTION_TYPES)}"
            )


def lora_from_text(text: str) -> LoraFile:
    """ "style.safetensors:0.8" is a file and its weight; without a number the weight is 1."""
    return LoraFile(*file_and_weight(text))


def embedding_from_text(text: str) -> EmbeddingFile:
    """ "cat-toy.safetensors:<cat-toy>" is a file and its word; an existing file may have a colon in its name."""
    path, colon, token = text.rpartition(":")
    if colon and path and token and not Path(text).exists():
        return EmbeddingFile(path, token)
    return EmbeddingFile(text)
