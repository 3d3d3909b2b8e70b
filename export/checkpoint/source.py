"""What to export: a checkpoint and its additions. Holds names and paths only; opens no files."""

from dataclasses import dataclass
from pathlib import Path

from latentrt.runtime.errors import CheckpointError, unknown
from latentrt.runtime.weights import file_and_weight

PREDICTION_TYPES = ("epsilon", "v_prediction")


@dataclass(frozen=True, slots=True)
class LoraFile:
    """A LoRA to merge, and its weight."""

    path: str
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class EmbeddingFile:
    """A textual inversion to add, and its word in prompts; None takes the word from the file."""

    path: str
    token: str | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """A checkpoint and the additions to apply before the export. Serializable as JSON, for a child process.

    Attributes:
        checkpoint: folder in the diffusers format, single file in the original format, or Hub id (`org/name`).
        name: name for display; None takes the last part of `checkpoint`.
        config: folder in the diffusers format with configs, scheduler and tokenizer for a single file; None takes those
            of the family's public checkpoint.
        prediction_type: one of `PREDICTION_TYPES`; None takes the checkpoint's.
        vae: folder or file of a VAE that replaces the checkpoint's.
        preview_vae: folder or file of an `AutoencoderTiny` (TAESD) whose decoder is added, for previews.
        loras: LoRAs to merge.
        embeddings: textual inversions to add.
        allow_pickle: also open pickled weights, with PyTorch's restricted unpickler.
    """

    checkpoint: str
    name: str | None = None
    config: str | None = None
    prediction_type: str | None = None
    vae: str | None = None
    preview_vae: str | None = None
    loras: tuple[LoraFile, ...] = ()
    embeddings: tuple[EmbeddingFile, ...] = ()
    allow_pickle: bool = False

    def __post_init__(self) -> None:
        if self.prediction_type not in (None, *PREDICTION_TYPES):
            raise CheckpointError(unknown("prediction type", self.prediction_type, PREDICTION_TYPES))


def lora_from_text(text: str) -> LoraFile:
    """Parse FILE[:WEIGHT], such as "style.safetensors:0.8"; the default weight is 1."""
    return LoraFile(*file_and_weight(text))


def embedding_from_text(text: str) -> EmbeddingFile:
    """Parse FILE[:WORD], such as "cat-toy.safetensors:<cat-toy>"; an existing file may have a colon in its name."""
    path, colon, token = text.rpartition(":")
    if colon and path and token and not Path(text).exists():
        return EmbeddingFile(path, token)
    return EmbeddingFile(text)
