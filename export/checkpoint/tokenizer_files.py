"""Tokenizer files: the checkpoint's own, or CLIP's for a single file; with the words of textual inversions added."""

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
    """A folder with a tokenizer, and its padding token; None takes the folder's."""

    folder: Path
    pad: str | None = None

    @classmethod
    def of_clip(cls, pad: str) -> "Vocabulary":
        """CLIP's vocabulary, which all families share; it is part of the embedded model."""
        return cls(Path(next(iter(engines.__path__))) / "shapes" / "tokenizer", pad)

    def files(self) -> list[Path]:
        """The tokenizer's files that exist in the folder."""
        return [self.folder / name for name in (*_FILES, *_MORE) if (self.folder / name).is_file()]

    def load(self, words: Mapping[str, int]) -> tuple[Any, dict[str, tuple[int, ...]]]:
        """Load the `CLIPTokenizer` and add words to it; returns it, and word -> token ids.

        The second id of `<cat>` belongs to the token `<cat>_1`, and so on, as in diffusers. Words of several ids that
        are in the folder's own tokenizer are found by these names.

        Args:
            words: word -> number of token ids.

        Raises `CheckpointError` if files are missing, or if a word is already a token.
        """
        tokenizer = self._opened()
        ids: dict[str, tuple[int, ...]] = {}
        for word, count in words.items():
            names = [word, *(f"{word}_{i}" for i in range(1, count))]
            if taken := [name for name in names if name in tokenizer.get_vocab()]:
                raise CheckpointError(
                    f"the word {taken[0]!r} is already in the vocabulary; choose another with --embedding FILE:WORD"
                )
            tokenizer.add_tokens(names)
            ids[word] = tuple(tokenizer.convert_tokens_to_ids(names))
        return tokenizer, _own_words(tokenizer) | ids

    def _opened(self) -> Any:
        """The folder's `CLIPTokenizer`; raises `CheckpointError` if it cannot be read."""
        from transformers import CLIPTokenizer

        vocabulary, merges = (self.folder / name for name in _FILES)
        if not (vocabulary.is_file() and merges.is_file()) and not (self.folder / "tokenizer.json").is_file():
            raise CheckpointError(f"{self.folder} has no vocab.json and merges.txt, and no tokenizer.json")
        try:
            if self.pad is not None:
                tokenizer = CLIPTokenizer(str(vocabulary), str(merges), pad_token=self.pad)
            else:
                tokenizer = CLIPTokenizer.from_pretrained(self.folder)
        except Exception as error:  # the library raises exceptions of any type for malformed files
            reason = str(error).strip().partition("\n")[0][:200]
            raise CheckpointError(f"{self.folder}: the tokenizer cannot be read: {reason}") from error
        special = {name: getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
        if missing := [name for name, number in special.items() if number is None]:
            raise CheckpointError(f"{self.folder}: the tokenizer has no {missing[0]} token")
        return tokenizer

    def write(self, target: Path, tokenizer: Any, added: Sequence[int]) -> None:
        """Write tokenizer.json, vocab.json and merges.txt to `target`, which is created.

        Args:
            tokenizer: as `load` returned it.
            added: ids of the added words.
        """
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


def _own_words(tokenizer: Any) -> dict[str, tuple[int, ...]]:
    """Added tokens that stand for several: `<cat>` for `<cat>`, `<cat>_1`, as for diffusers' `maybe_convert_prompt`."""
    added: dict[str, int] = tokenizer.added_tokens_encoder
    words = {}
    for word in added:
        names = [word]
        while f"{word}_{len(names)}" in added:
            names.append(f"{word}_{len(names)}")
        if len(names) > 1:
            words[word] = tuple(added[name] for name in names)
    return words


def _write_json(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, ensure_ascii=False, separators=(",", ":")), encoding="utf-8")
