"""Prompt sections to chunks of token ids, with Hugging Face `tokenizers`. Knows nothing about prompt syntax."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from latentrt.runtime.bundle import Bundle, TextEncoder
from latentrt.runtime.errors import BundleError
from latentrt.runtime.files import open_regular

from .prompt import Section, parse

if TYPE_CHECKING:
    import tokenizers

# As in the web UI, a full chunk ends after a comma if there is one among its last tokens.
_COMMA_WITHIN = 20
_MAX_FILE = 1 << 26  # bytes of tokenizer.json; CLIP's has 1.7 MB


@dataclass(frozen=True, slots=True, eq=False)
class Chunks:
    """A prompt as input of the text encoder, in chunks.

    Attributes:
        ids: (chunks, max_length) int64: [bos, up to max_length - 2 ids, eos, pad, …].
        weights: (chunks, max_length) float32; 1 for bos, eos and pad.
        tokens: number of ids of the whole prompt, without bos and eos.
        dropped: the text that did not fit, or "".
    """

    ids: NDArray[np.int64]
    weights: NDArray[np.float32]
    tokens: int
    dropped: str


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """Ids (n, max_length) int64, and for each prompt the text that did not fit, or ""."""

    ids: NDArray[np.int64]
    dropped: tuple[str, ...]


class Tokenizer:
    """CLIP's tokenizer: [bos, up to max_length - 2 ids, eos], padded to max_length."""

    def __init__(self, tokenizer: "tokenizers.Tokenizer", facts: TextEncoder) -> None:
        self._tokenizer, self._facts = tokenizer, facts
        self._words = {ids[0]: ids for ids in facts.embeddings.values()}
        self._comma = self._ids_of_comma()[-1]

    @classmethod
    def from_file(cls, path: Path, facts: TextEncoder) -> "Tokenizer":
        """Load the tokenizer of a text encoder. Raises `BundleError` if it cannot be read."""
        import tokenizers

        try:
            with open_regular(path) as file:
                data = file.read(_MAX_FILE + 1)
            if len(data) > _MAX_FILE:
                raise ValueError(f"it has more than {_MAX_FILE >> 20} MiB")
            tokenizer = tokenizers.Tokenizer.from_buffer(data)
            tokenizer.no_truncation()
            tokenizer.no_padding()
            return cls(tokenizer, facts)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # tokenizers raises bare Exception, and panics are no Exception
            raise BundleError(f"{path} cannot be read as a tokenizer: {str(error)[:300]}") from error

    def _ids_of_comma(self) -> list[int]:
        if not (ids := self._tokenizer.encode(",", add_special_tokens=False).ids):
            raise ValueError("it has no token for a comma")
        return list(ids)

    @property
    def capacity(self) -> int:
        """Prompt ids per chunk, without bos and eos."""
        return self._facts.max_length - 2

    def encode(self, prompts: Sequence[str]) -> Encoded:
        """Ids of plain prompts, one chunk each; longer prompts are truncated."""
        chunks = [self.chunks(parse(prompt), split=False) for prompt in prompts]
        rows = [np.empty((0, self._facts.max_length), np.int64), *(c.ids for c in chunks)]
        return Encoded(np.concatenate(rows), tuple(c.dropped for c in chunks))

    def chunks(self, sections: Sequence[Section], *, split: bool) -> Chunks:
        """Chunks of a prompt; each section starts a new one.

        Args:
            split: whether to spread long sections over several chunks instead of truncating them. A full chunk ends
                after the last comma among its last 20 ids, so that phrases stay together.

        Every piece is tokenized separately, so a word ends where its weight ends.
        """
        rows: list[tuple[list[int], list[float]]] = []
        tokens, dropped = 0, []
        for section in sections:
            ids, weights = self._section(section)
            tokens += len(ids)
            spans = _spans(ids, self.capacity, self._comma)
            if len(ids) > self.capacity and not split:
                spans = [(0, self.capacity)]
                dropped.append(self._rest(section))
            rows += [(ids[start:end], weights[start:end]) for start, end in spans]
        facts = self._facts
        all_ids = np.full((len(rows), facts.max_length), facts.pad, np.int64)
        all_weights = np.ones((len(rows), facts.max_length), np.float32)
        for i, (ids, weights) in enumerate(rows):
            all_ids[i, : len(ids) + 2] = [facts.bos, *ids, facts.eos]
            all_weights[i, 1 : len(ids) + 1] = weights
        return Chunks(all_ids, all_weights, tokens, " … ".join(dropped))

    def _section(self, section: Section) -> tuple[list[int], list[float]]:
        ids: list[int] = []
        weights: list[float] = []
        for piece in section:
            new = [i for i, _ in self._located(piece.text)]
            ids += new
            weights += [piece.weight] * len(new)
        return ids, weights

    def _rest(self, section: Section) -> str:
        """The text from the first id that does not fit."""
        capacity, rest = self.capacity, ""
        for piece in section:
            located = self._located(piece.text)
            if capacity < len(located):
                rest += piece.text[located[capacity][1] :] if capacity > 0 else piece.text
            capacity -= len(located)
        return rest.strip()

    def _located(self, text: str) -> list[tuple[int, int]]:
        """Ids of a text and their offsets; a word of a textual inversion becomes one id per vector."""
        try:
            encoding = self._tokenizer.encode(text, add_special_tokens=False)
        except (KeyboardInterrupt, MemoryError):
            raise
        except BaseException as error:  # panics of the library are no Exception
            raise BundleError(f"the tokenizer {self._facts.tokenizer} fails: {str(error)[:300]}") from error
        pieces = zip(encoding.ids, encoding.offsets, strict=True)
        return [(i, start) for first, (start, _) in pieces for i in self._words.get(first, (first,))]


def _spans(ids: Sequence[int], capacity: int, comma: int) -> list[tuple[int, int]]:
    """Ranges of the chunks; at least one, which is empty only if `ids` is."""
    spans, start = [], 0
    while (end := start + capacity) < len(ids):
        if ids[end] != comma:
            near = [i for i in range(max(start, end - _COMMA_WITHIN), end) if ids[i] == comma]
            end = near[-1] + 1 if near else end
        spans.append((start, end))
        start = end
    return [*spans, (start, len(ids))]


def tokenizers_of(bundle: Bundle) -> tuple[Tokenizer, ...]:
    """A bundle's tokenizers, one for each text encoder."""
    encoders = bundle.manifest.model.text_encoders
    return tuple(Tokenizer.from_file(bundle.file(facts.tokenizer), facts) for facts in encoders)
