"""The tokenizer of a checkpoint: its own, or CLIP's where the checkpoint is a file of weights; and words added."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentrt import engines
from latentrt.runtime.errors import CheckpointError

_FILES = ("vocab.json", "merges.txt")
_MORE = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A folder with a tokenizer, and the token that it pads with; None is what the folder says."""

    folder: Path
    pad: str | None = None

    @classmethod
    def of_clip(cls, pad: str) -> "Vocabulary":
        """CLIP's own vocabulary, which all families share; it ships along with the small model."""
        return cls(Path(next(iter(engines.__path__))) / "shapes" / "tokenizer", pad)

    def files(self) -> list[Path]:
        """Those of its files that a checkpoint brings."""
        return [self.folder / name for name in (*_FILES, *_MORE) if (self.folder / name).is_file()]

    def load(self, words: Mapping[str, int]) -> tuple[Any, dict[str, tuple[int, ...]]]:
        """The `CLIPTokenizer`, and the ids of each of `words`, which are added with so many ids each.

        The second id of `<cat>` is that of `<cat>_1`, and so on, as diffusers has it.
        """
        from transformers import CLIPTokenizer

        vocabulary, merges = (self.folder / name for name in _FILES)
        if self.pad is not None:
            tokenizer = CLIPTokenizer(str(vocabulary), str(merges), pad_token=self.pad)
        elif (vocabulary.is_file() and merges.is_file()) or (self.folder / "tokenizer.json").is_file():
            tokenizer = CLIPTokenizer.from_pretrained(self.folder)
        else:
            raise CheckpointError(f"{self.folder} needs vocab.json and merges.txt")
        ids: dict[str, tuple[int, ...]] = {}
        for word, count in words.items():
            names = [word, *(f"{word}_{i}" for i in range(1, count))]
            if taken := [name for name in names if name in tokenizer.get_vocab()]:
                raise CheckpointError(
                    f"the word {taken[0]!r} is in the vocabulary already: name another with --embedding FILE:WORD"
                )
            tokenizer.add_tokens(names)
            ids[word] = tuple(tokenizer.convert_tokens_to_ids(names))
        return tokenizer, ids

    def write(self, target: Path, tokenizer: Any, added: Sequence[int]) -> None:
        """Write tokenizer.json, vocab.json and merges.txt to the new folder `target`; `added` are ids of new words."""
        target.mkdir()
        backend = json.loads(tokenizer.backend_tokenizer.to_str())
        _write_json(target / "tokenizer.json", backend)
        model = backend["model"]
        if not added and (self.folder / "vocab.json").is_file():
            shutil.copyfile(self.folder / "vocab.json", target / "vocab.json")
        else:
            _write_json(target / "vocab.json", model["vocab"] | {tokenizer.convert_ids_to_tokens(i): i for i in added})
        if (self.folder / "merges.txt").is_file():
            shutil.copyfile(self.folder / "merges.txt", target / "merges.txt")
        else:
            lines = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
            (target / "merges.txt").write_text("\n".join(["#version: 0.2", *lines, ""]), encoding="utf-8")


def _write_json(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, ensure_ascii=False, separators=(",", ":")), encoding="utf-8")
