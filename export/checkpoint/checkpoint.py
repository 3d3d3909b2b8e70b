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

from .families import PIPELINES, Family, Preset, check_models, family_of
from .find_files import WEIGHTS, Contents, contents_of, resolved
from .single_file import vae_weights
from .source import Source
from .textual_inversion import read_embedding
from .torch_modules import bare_name, module_from_weights
from .weight_files import find_weights, read_json, weights_from_file

_TEXT_ENCODER = "text_encoder"  # and "text_encoder_2"
_TOKEN_EMBEDDING = "embeddings.token_embedding.weight"


class Checkpoint:
    """A checkpoint whose files have been found, with its additions: LoRAs, textual inversions, another VAE.

    Attributes:
        index: content of model_index.json.
        configs: component, or "scheduler" -> its parsed config.
        scheduler: the scheduler's config file, byte for byte.
    """

    def __init__(self, source: Source, contents: Contents) -> None:
        self.source, self._contents = source, contents
        self.index, self.configs, self.scheduler = contents.index, contents.configs, contents.scheduler
        check_models(self.name, self.configs["unet"], self.configs["vae"])
        family_of(self.name, self.configs)  # raises for an unknown family
        self._vae_files = {} if source.vae is None else self._take_vae(Path(source.vae))
        widths = {part: self.configs[part]["hidden_size"] for part in self.configs if part.startswith(_TEXT_ENCODER)}
        self._embeddings = [
            read_embedding(file, widths, allow_pickle=source.allow_pickle) for file in source.embeddings
        ]
        if self._embeddings:
            self.load_tokenizer()  # raises for words that are already tokens
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
        sha256 = _hash_of_files(self._contents.files)
        additions = tuple(self._additions())
        if additions:
            text = "".join(f"{a.kind} {a.sha256} {a.weight}\n" for a in additions)
            sha256 = hashlib.sha256(f"{sha256}\n{text}".encode()).hexdigest()
        return manifest.CheckpointRecord(self.name, sha256, additions)

    def sha256(self) -> str:
        """Hash of the names and contents of all files that an export reads."""
        return self.record().sha256

    def load(self, part: str, dtype: torch.dtype) -> torch.nn.Module:
        """Load "text_encoder", "text_encoder_2", "unet" or "vae" as a module in eval mode.

        LoRAs are merged, and the vectors of textual inversions follow the rows of the token embedding.
        """
        config = self.configs[part]
        if part.startswith(_TEXT_ENCODER):
            added = sum(embedding.count for embedding in self._embeddings)
            config = {**config, "vocab_size": config["vocab_size"] + added}
        where = f"{self.name}'s {part}"
        return module_from_weights(part, config, self._changed_weights(part), dtype, where=where)

    def load_tokenizer(self, name: str = "tokenizer") -> Any:
        """The `CLIPTokenizer` with the words of textual inversions; `name` is "tokenizer" or "tokenizer_2"."""
        return self._tokenizers[name][0]

    def embeddings(self, name: str = "tokenizer") -> dict[str, tuple[int, ...]]:
        """Word of a textual inversion -> its token ids."""
        return self._tokenizers[name][1]

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
        tensors = self._contents.weights[part]()
        for raw in tensors:
            name, tensor = bare_name(part, raw), tensors[raw]
            if changes := self._changes.get(f"{part}.{name}"):
                tensor = torch.from_numpy(with_changes(f"{part}.{name}", tensor.float().numpy(), changes))
            if part.startswith(_TEXT_ENCODER) and name == _TOKEN_EMBEDDING and self._embeddings:
                rows = [embedding.vectors[part].to(torch.float32) for embedding in self._embeddings]
                tensor = torch.cat([tensor.float(), *rows])
            yield raw, tensor

    def _parameters(self) -> list[str]:
        return [f"{part}.{bare_name(part, raw)}" for part, opened in self._contents.weights.items() for raw in opened()]

    def _take_vae(self, path: Path) -> dict[str, Path]:
        """Replace the checkpoint's VAE; returns the files that the new one is read from."""
        allow_pickle = self.source.allow_pickle
        if not path.is_dir():
            tensors = weights_from_file(path, allow_pickle=allow_pickle)
            self._contents.weights["vae"] = lambda: vae_weights(tensors, self.configs["vae"])
            return {path.name: path}
        folder = path / "vae" if (path / "vae" / "config.json").is_file() else path
        config = folder / "config.json"
        self.configs["vae"] = read_json(config, "A VAE folder contains config.json and weights.")
        found = find_weights(folder, WEIGHTS["vae"], allow_pickle=allow_pickle)
        self._contents.weights["vae"] = found.open
        return {file.name: file for file in (config, *found.all_files)}

    def _additions(self) -> Iterator[manifest.Addition]:
        source = self.source
        if source.vae is not None:
            yield manifest.Addition("vae", Path(source.vae).name, _hash_of_files(self._vae_files), None)
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


def _hash_of_files(files: Mapping[str, Path]) -> str:
    """Hash of names and contents; for a single file, the file's own sha256."""
    if len(files) == 1:
        return sha256_of_file(next(iter(files.values())))
    digest = hashlib.sha256()
    for name in sorted(files, key=lambda name: name.split("/")):
        digest.update(f"{name} {sha256_of_file(files[name])}\n".encode())
    return digest.hexdigest()
