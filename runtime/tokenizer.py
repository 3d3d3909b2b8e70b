"""Prompts to ids, with Hugging Face `tokenizers`. Knows nothing of weights in prompts or of embeddings."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .bundle import TextEncoder
from .errors import BundleError

if TYPE_CHECKING:
    import tokenizers

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """Ids (n, max_length) int64, and for each prompt the end that did not fit, "" where all of it did."""

    ids: NDArray[np.int64]
    dropped: tuple[str, ...]


class Tokenizer:
    """CLIP's tokenizer: [bos, up to max_length - 2 ids, eos], padded to max_length."""

    def __init__(self, tokenizer: "tokenizers.Tokenizer", facts: TextEncoder) -> None:
        self._tokenizer, self._facts = tokenizer, facts

    @classmethod
    def from_bundle_files(cls, folder: Path, facts: TextEncoder) -> "Tokenizer":
        """Read the tokenizer that a bundle's manifest names for a text encoder."""
        import tokenizers

        path = folder / facts.tokenizer
        try:
            tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises bare Exception
            raise BundleError(f"{path} cannot be read as a tokenizer: {error}") from error
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return cls(tokenizer, facts)

    def encode(self, prompts: Sequence[str]) -> Encoded:
        """Ids of prompts; a prompt that is too long is cut, with a warning that says what was dropped."""
        facts = self._facts
        room = facts.max_length - 2
        ids = np.full((len(prompts), facts.max_length), facts.pad, np.int64)
        dropped = []
        for row, prompt in zip(ids, prompts, strict=True):
            encoding = self._tokenizer.encode(prompt, add_special_tokens=False)
            kept = encoding.ids[:room]
            row[: len(kept) + 2] = [facts.bos, *kept, facts.eos]
            rest = prompt[encoding.offsets[room][0] :] if len(encoding.ids) > room else ""
            dropped.append(rest)
            if rest:
                logger.warning(
                    "the prompt has %d tokens and only the first %d are used; dropped: %s",
                    len(encoding.ids),
                    room,
                    _shortened(rest),
                )
        return Encoded(ids, tuple(dropped))


def _shortened(text: str, length: int = 200) -> str:
    return repr(text) if len(text) <= length else f"{text[:length]!r}… ({len(text):,} characters)"
