"""Open a checkpoint of any form, apply the user's additions, and load its modules strictly.

Knows configs and families; knows nothing of ONNX.
"""

import hashlib
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from latentrt.runtime.bundle import manifest
from latentrt.runtime.errors import CheckpointError
from latentrt.runtime.files import sha256_of_file
from latentrt.runtime.weights import sha256_of_lora
from latentrt.runtime.weights.lora import read_loras, with_changes

from .families import PIPELINES, Family, Preset, TextEncoderRow, family_of
from .find_files import Contents, contents_of, resolved
from .part_configs import check_fit, check_score, completed
from .part_weights import check_weights, refuse_unused
from .pipeline_mends import sample_size_of
from .scaled_weights import unscaled
from .single_file import VAE_PREFIX
from .source import Source
from .textual_inversion import read_embedding
from .torch_modules import bare_name, module_from_weights
from .vae_files import VaeFiles, preview_vae_files, vae_files

_TEXT_ENCODER = "text_encoder"  # and "text_encoder_2"
_TOKEN_EMBEDDING = "embeddings.token_embedding.weight"
_PREVIEW_VAE = "preview_vae"


class Checkpoint:
    """A checkpoint whose files have been found, with its additions: LoRAs, textual inversions, VAEs.

    Attributes:
        index: content of model_index.json.
        configs: component, or "scheduler" -> its parsed config.
        scheduler: the scheduler's config file, byte for byte.
    """

    def __init__(self, source: Source, contents: Contents) -> None:
        self.source, self._contents = source, contents
        self.index, self.configs, self.scheduler = contents.index, dict(contents.configs), contents.scheduler
        self._weights = dict(contents.weights)
        self._vae_files = self._take_vaes()
        self._check_configs()
        self._check_weights()
        widths = {part: self.configs[part]["hidden_size"] for part in self.configs if part.startswith(_TEXT_ENCODER)}
        self._embeddings = [
            read_embedding(file, widths, allow_pickle=source.allow_pickle) for file in source.embeddings
        ]
        for row in self.family.text_encoders:
            self.max_length(row)  # raises for a tokenizer that does not fit, and for words that are already tokens
        loras = [(Path(lora.path), lora.weight) for lora in source.loras]
        self._changes = read_loras(loras, self._parameters()) if loras else {}

    @classmethod
    def open(cls, source: Source | Path | str) -> "Checkpoint":
        """Find all files of a checkpoint; raises `CheckpointError` for missing, malformed and unsupported ones."""
        source = resolved(source if isinstance(source, Source) else Source(str(source)))
        return cls(source, contents_of(source))

    @property
    def name(self) -> str:
        """Name for display."""
        return str(self.source.name)

    @property
    def family(self) -> Family:
        """The family, determined by the text encoders."""
        return family_of(self.name, self.configs)

    @property
    def preset(self) -> Preset:
        """diffusers' defaults for the checkpoint's pipeline class."""
        return PIPELINES[self.index["_class_name"]]

    def record(self) -> manifest.CheckpointRecord:
        """The manifest's record of the checkpoint. Reads all files."""
        sha256 = hash_of_files(self._contents.files)
        additions = tuple(self._additions())
        # A preview VAE changes no picture, and so not what the pictures are drawn from.
        if counted := [a for a in additions if a.kind != _PREVIEW_VAE]:
            text = "".join(f"{a.kind} {a.sha256} {a.weight}\n" for a in counted)
            sha256 = hashlib.sha256(f"{sha256}\n{text}".encode()).hexdigest()
        return manifest.CheckpointRecord(self.name, sha256, additions)

    def sha256(self) -> str:
        """Hash of the names and contents of all files that an export reads."""
        return self.record().sha256

    def load(self, part: str, dtype: torch.dtype) -> torch.nn.Module:
        """Load "text_encoder", "text_encoder_2", "unet", "vae" or "preview_vae" as a module in eval mode.

        LoRAs are merged, and the vectors of textual inversions follow the rows of the token embedding.
        """
        config = self.configs[part]
        if part.startswith(_TEXT_ENCODER) and self._embeddings:
            config = {**config, "vocab_size": max(config["vocab_size"], self._first_added(part) + self._added)}
        where = f"{self.name}'s {part}"
        return module_from_weights(part, config, self._changed_weights(part), dtype, where=where)

    def load_tokenizer(self, name: str = "tokenizer") -> Any:
        """The `CLIPTokenizer` with the words of textual inversions; `name` is "tokenizer" or "tokenizer_2"."""
        return self._tokenizers[name][0]

    def embeddings(self, name: str = "tokenizer") -> dict[str, tuple[int, ...]]:
        """Word of a textual inversion -> its token ids."""
        return self._tokenizers[name][1]

    def max_length(self, row: TextEncoderRow) -> int:
        """Tokens of a text: the tokenizer's `model_max_length`, as in diffusers, at most the encoder's positions."""
        tokenizer, config = self.load_tokenizer(row.tokenizer), self.configs[row.part]
        known = len(tokenizer) - self._added
        if known > config["vocab_size"]:
            raise CheckpointError(
                f"{self.name}: the {row.tokenizer} has {known} tokens, but the {row.part} has rows for "
                f"{config['vocab_size']}"
            )
        given, positions = tokenizer.model_max_length, config["max_position_embeddings"]
        if not isinstance(given, int) or given < 3 or positions < 3:
            raise CheckpointError(
                f"{self.name}: the {row.tokenizer} has model_max_length = {given!r}, and the {row.part} {positions} "
                "positions; expected integers >= 3"
            )
        return int(min(given, positions))

    @property
    def _added(self) -> int:
        """Number of token ids of all textual inversions."""
        return sum(embedding.count for embedding in self._embeddings)

    def _first_added(self, part: str) -> int:
        """The first token id of textual inversions."""
        row = next(row for row in self.family.text_encoders if row.part == part)
        return len(self.load_tokenizer(row.tokenizer)) - self._added

    def write_tokenizer(self, target: Path, name: str = "tokenizer") -> None:
        """Write a tokenizer's files to `target`, which is created."""
        tokenizer, words = self._tokenizers[name]
        self._contents.vocabularies[name].write(target, tokenizer, [i for ids in words.values() for i in ids])

    @cached_property
    def _tokenizers(self) -> dict[str, tuple[Any, dict[str, tuple[int, ...]]]]:
        words: dict[str, int] = {}
        for embedding in self._embeddings:
            if embedding.word.lower() in map(str.lower, words):  # CLIP's tokenizer ignores case
                raise CheckpointError(f"two textual inversions are named {embedding.word!r}; rename one with FILE:WORD")
            words[embedding.word] = embedding.count
        return {name: vocabulary.load(words) for name, vocabulary in self._contents.vocabularies.items()}

    def _changed_weights(self, part: str) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the component's tensors; those with changes are in float32, so that they are rounded once."""
        tensors = self._weights[part].open()
        for raw in tensors:
            name, tensor = bare_name(part, raw), tensors[raw]
            if changes := self._changes.get(f"{part}.{name}"):
                tensor = torch.from_numpy(with_changes(f"{part}.{name}", tensor.float().numpy(), changes))
            if part.startswith(_TEXT_ENCODER) and name == _TOKEN_EMBEDDING and self._embeddings:
                first = self._first_added(part)  # a padded table has rows behind it
                rows = [embedding.vectors[part].to(torch.float32) for embedding in self._embeddings]
                tensor = tensor.float()
                tensor = torch.cat([tensor[:first], *rows, tensor[first + self._added :]])
            yield raw, tensor

    def _parameters(self) -> list[str]:
        return [f"{part}.{bare_name(part, raw)}" for part, own in self._weights.items() for raw in own.headers()]

    def _check_configs(self) -> None:
        """Every config passes one gate and is complete afterwards."""
        sdxl = self.index["_class_name"].startswith("StableDiffusionXL")
        for part in self._weights:
            self.configs[part] = completed(self._origin(part), part, self.configs[part], sdxl=sdxl)
        self.configs["unet"]["sample_size"] = sample_size_of(self.index, self._contents.configs["unet"])
        check_score(self.name, self.family, self.index)  # raises for an unknown family, too
        check_fit(self.name, self.family, self.configs)
        for row in self.family.text_encoders:
            if row.tokenizer not in self._contents.vocabularies:
                raise CheckpointError(f"{self.name} has no {row.tokenizer}; model_index.json does not name it")

    def _check_weights(self) -> None:
        """Every tensor of every file is used, harmless or refused."""
        used: set[str] = set()
        for part, weights in self._weights.items():
            of_part = check_weights(f"{self._origin(part)}'s {part}", part, self.configs[part], weights.headers())
            if part == "vae" and self.source.vae is not None:
                stored = {name for name in unscaled(weights.stored()) if name not in of_part}
                whole = any(name.startswith(VAE_PREFIX) for name in stored | of_part)  # a whole checkpoint
                refuse_unused(self.source.vae, [n for n in stored if n.startswith(VAE_PREFIX) or not whole])
            else:
                used |= of_part
        replaced = VAE_PREFIX if self.source.vae is not None else ()
        refuse_unused(self.name, [n for n in self._contents.single if n not in used and not n.startswith(replaced)])

    def _origin(self, part: str) -> str:
        """Where a component comes from, for error messages."""
        given = {"vae": self.source.vae, _PREVIEW_VAE: self.source.preview_vae}
        return given.get(part) or self.name

    def _take_vaes(self) -> dict[str, VaeFiles]:
        """Replace the checkpoint's VAE and add one for previews, where they are given."""
        source, found = self.source, dict[str, VaeFiles]()
        if source.vae is not None:
            found["vae"] = vae_files(Path(source.vae), self.configs["vae"], allow_pickle=source.allow_pickle)
        if source.preview_vae is not None:
            found[_PREVIEW_VAE] = preview_vae_files(Path(source.preview_vae), allow_pickle=source.allow_pickle)
        for part, vae in found.items():
            self.configs[part], self._weights[part] = vae.config, vae.weights
        return found

    def _additions(self) -> Iterator[manifest.Addition]:
        source = self.source
        for part, vae in self._vae_files.items():
            yield manifest.Addition(part, Path(self._origin(part)).name, hash_of_files(vae.files), None)
        for lora in source.loras:
            yield manifest.Addition("lora", Path(lora.path).name, sha256_of_lora(Path(lora.path)), lora.weight)
        for embedding in self._embeddings:
            yield manifest.Addition("embedding", embedding.path.name, sha256_of_file(embedding.path), None)


def quiet_libraries() -> None:
    """Disable the progress bars of transformers and diffusers, which would interfere with the export's own."""
    import diffusers
    import transformers

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()


def hash_of_files(files: Mapping[str, Path]) -> str:
    """Hash of names and contents; for a single file, the file's own sha256."""
    if len(files) == 1:
        return sha256_of_file(next(iter(files.values())))
    digest = hashlib.sha256()
    for name in sorted(files, key=lambda name: name.split("/")):
        digest.update(f"{name} {sha256_of_file(files[name])}\n".encode())
    return digest.hexdigest()
