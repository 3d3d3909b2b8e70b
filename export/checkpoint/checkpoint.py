"""Open a checkpoint of any form, put into it what the user wants, and load its modules, strictly.

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
from latentrt.runtime.weights.lora import read_loras, summed_delta

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
    """A checkpoint whose files have been found, and what is put into it: LoRAs, embeddings, another VAE.

    `index` is model_index.json, `configs` holds the components' parsed JSON, `scheduler` the scheduler's as bytes.
    """

    def __init__(self, source: Source, contents: Contents) -> None:
        self.source, self._contents = source, contents
        self.index, self.configs, self.scheduler = contents.index, contents.configs, contents.scheduler
        check_models(self.name, self.configs["unet"], self.configs["vae"])
        family_of(self.name, self.configs)  # refuses what is none
        self._vae_files = {} if source.vae is None else self._take_vae(Path(source.vae))
        widths = {part: self.configs[part]["hidden_size"] for part in self.configs if part.startswith(_TEXT_ENCODER)}
        self._embeddings = [
            read_embedding(file, widths, allow_pickle=source.allow_pickle) for file in source.embeddings
        ]
        if self._embeddings:
            self.load_tokenizer()  # refuses words that are taken
        loras = [(Path(lora.path), lora.weight) for lora in source.loras]
        self._changes = read_loras(loras, self._parameters()) if loras else {}

    @classmethod
    def open(cls, source: Source | Path | str) -> "Checkpoint":
        """Find all files of a checkpoint; raises `CheckpointError` that names what is missing or wrong."""
        source = resolved(source if isinstance(source, Source) else Source(str(source)))
        return cls(source, contents_of(source))

    @property
    def name(self) -> str:
        """For people."""
        return str(self.source.name)

    @property
    def family(self) -> Family:
        """The family, told apart by the text encoders."""
        return family_of(self.name, self.configs)

    @property
    def preset(self) -> Preset:
        """What diffusers draws with where a call says nothing."""
        return PIPELINES[self.index["_class_name"]]

    def record(self) -> manifest.Checkpoint:
        """What the manifest says of it. Reads all files."""
        sha256 = _hash_of_files(self._contents.files)
        additions = tuple(self._additions())
        if additions:
            text = "".join(f"{a.kind} {a.sha256} {a.weight}\n" for a in additions)
            sha256 = hashlib.sha256(f"{sha256}\n{text}".encode()).hexdigest()
        return manifest.Checkpoint(self.name, sha256, additions)

    def sha256(self) -> str:
        """One hash over the names and contents of all files that an export reads."""
        return self.record().sha256

    def load(self, part: str, dtype: torch.dtype) -> torch.nn.Module:
        """A component as a module in eval mode: "text_encoder", "text_encoder_2", "unet" or "vae".

        LoRAs are merged, and the vectors of textual inversions lie behind the text encoders' own.
        """
        config = self.configs[part]
        if part.startswith(_TEXT_ENCODER):
            added = sum(embedding.count for embedding in self._embeddings)
            config = {**config, "vocab_size": config["vocab_size"] + added}
        where = f"{self.name}'s {part}"
        return module_from_weights(part, config, self._changed_weights(part), dtype, where=where)

    def load_tokenizer(self, name: str = "tokenizer") -> Any:
        """The `CLIPTokenizer`, which knows the words of textual inversions; the second one is "tokenizer_2"."""
        return self._tokenizers[name][0]

    def embeddings(self, name: str = "tokenizer") -> dict[str, tuple[int, ...]]:
        """Words of textual inversions, and the ids that each stands for."""
        return self._tokenizers[name][1]

    def write_tokenizer(self, target: Path, name: str = "tokenizer") -> None:
        """Write a tokenizer's files to the new folder `target`."""
        tokenizer, words = self._tokenizers[name]
        self._contents.vocabularies[name].write(target, tokenizer, [i for ids in words.values() for i in ids])

    @cached_property
    def _tokenizers(self) -> dict[str, tuple[Any, dict[str, tuple[int, ...]]]]:
        words: dict[str, int] = {}
        for embedding in self._embeddings:
            if embedding.word.lower() in map(str.lower, words):  # CLIP's tokenizer knows no capitals
                raise CheckpointError(f"two textual inversions are called {embedding.word!r}: rename one, FILE:WORD")
            words[embedding.word] = embedding.count
        return {name: vocabulary.load(words) for name, vocabulary in self._contents.vocabularies.items()}

    def _changed_weights(self, part: str) -> Iterator[tuple[str, torch.Tensor]]:
        """The component's tensors one after the other, those that LoRAs change in float32, to be rounded once."""
        tensors = self._contents.weights[part]()
        for raw in tensors:
            name, tensor = bare_name(part, raw), tensors[raw]
            if changes := self._changes.get(f"{part}.{name}"):
                delta = summed_delta(f"{part}.{name}", tuple(tensor.shape), changes)
                tensor = tensor.float() + torch.from_numpy(delta)
            if part.startswith(_TEXT_ENCODER) and name == _TOKEN_EMBEDDING and self._embeddings:
                rows = [embedding.vectors[part].to(torch.float32) for embedding in self._embeddings]
                tensor = torch.cat([tensor.float(), *rows])
            yield raw, tensor

    def _parameters(self) -> list[str]:
        return [f"{part}.{bare_name(part, raw)}" for part, opened in self._contents.weights.items() for raw in opened()]

    def _take_vae(self, path: Path) -> dict[str, Path]:
        """Put another VAE in the place of the checkpoint's own; returns the files that it is read from."""
        allow_pickle = self.source.allow_pickle
        if not path.is_dir():
            tensors = weights_from_file(path, allow_pickle=allow_pickle)
            self._contents.weights["vae"] = lambda: vae_weights(tensors, self.configs["vae"])
            return {path.name: path}
        folder = path / "vae" if (path / "vae" / "config.json").is_file() else path
        config = folder / "config.json"
        self.configs["vae"] = read_json(config, "A VAE's folder has config.json and its weights.")
        found = find_weights(folder, WEIGHTS["vae"], allow_pickle=allow_pickle)
        self._contents.weights["vae"] = found.open
        return {file.name: file for file in (config, *found.all_files)}

    def _additions(self) -> Iterator[manifest.Addition]:
        source = self.source
        if source.vae is not None:
            yield manifest.Addition("vae", Path(source.vae).name, _hash_of_files(self._vae_files), None)
        for lora in source.loras:
            yield manifest.Addition("lora", Path(lora.path).name, sha256_of_file(Path(lora.path)), lora.weight)
        for embedding in self._embeddings:
            yield manifest.Addition("embedding", embedding.path.name, sha256_of_file(embedding.path), None)


def quiet_libraries() -> None:
    """Turn off the progress bars of transformers and diffusers, which would mix with the export's own."""
    import diffusers
    import transformers

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()


def _hash_of_files(files: Mapping[str, Path]) -> str:
    """Over names and contents; a single file is known by its own hash."""
    if len(files) == 1:
        return sha256_of_file(next(iter(files.values())))
    digest = hashlib.sha256()
    for name in sorted(files, key=lambda name: name.split("/")):
        digest.update(f"{name} {sha256_of_file(files[name])}\n".encode())
    return digest.hexdigest()
