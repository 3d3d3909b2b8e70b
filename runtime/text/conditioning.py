"""Texts to embeddings: tokenized, encoded, weighted. Knows text encoders, and nothing of what reads the result.

Texts are encoded without an attention mask, as diffusers does for Stable Diffusion.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentrt.runtime.arrays import Float32, RunEncoder
from latentrt.runtime.bundle import TextEncoder
from latentrt.runtime.errors import InputError
from latentrt.runtime.limits import MAX_TOKENS, raised_by

from .given_texts import EMPTY, Text, TextInput, require_length
from .tokenizer import Chunks, Tokenizer

logger = logging.getLogger(__name__)

AT_ONCE = 16  # chunks in one run of a text encoder
# Different texts of one call -> their chunks, for one text encoder.
Tokens = Mapping[Text, Chunks]


@dataclass(frozen=True, slots=True, eq=False)
class Conditioning:
    """What the UNet reads besides latents and timestep; groups are ordered [negative, positive].

    Attributes:
        context: (B, G, S, D) float32: hidden states, those of all text encoders joined along D.
        pooled: (B, G, P) float32; None where the model has no pooled text embedding.
    """

    context: Float32
    pooled: Float32 | None


class EncodedTexts:
    """What one text encoder returns for the texts of a call; each different chunk is encoded once."""

    def __init__(self, tokens: Tokens, run: RunEncoder, graph: str, layers: Sequence[int]) -> None:
        """`run` runs a graph of the bundle on inputs by name; `layers` are those that will be read."""
        ids = {row.tobytes(): row for chunks in tokens.values() for row in chunks.ids}
        rows = np.stack(list(ids.values()))
        # Few at a time, as a text of any length must not need much more memory than a short one.
        parts = [run(graph, {"input_ids": rows[i : i + AT_ONCE]}, layers) for i in range(0, len(rows), AT_ONCE)]
        outputs = {name: _joined_rows([part[name] for part in parts]) for name in parts[0]}
        self._layers = {layer: i for i, layer in enumerate(layers)}
        self._hidden_states, self._pooled = outputs["hidden_states"], outputs.get("pooled")
        index = {key: i for i, key in enumerate(ids)}
        self._rows = {text: [index[row.tobytes()] for row in chunks.ids] for text, chunks in tokens.items()}
        self._weights = {text: chunks.weights for text, chunks in tokens.items()}
        self.longest = max(chunks.ids.size for chunks in tokens.values())

    def hidden_states(self, text: Text, clip_skip: int, length: int) -> Float32:
        """(length, D) of a text, padded with empty chunks."""
        layer = self._layers[clip_skip]
        states = emphasised(self._hidden_states[self._rows[text], layer], self._weights[text])
        states = states.reshape(-1, states.shape[-1])
        empty = self._hidden_states[self._rows[EMPTY], layer][0] if len(states) < length else states[:0]
        times = (length - len(states)) // max(1, len(empty))
        result: Float32 = np.concatenate([states, *[empty] * times]).astype(np.float32, copy=False)
        return result

    def pooled(self, text: Text) -> Float32:
        """(P,) of a text's first chunk."""
        assert self._pooled is not None
        return np.asarray(self._pooled[self._rows[text][0]], np.float32)


def tokenize(sides: Sequence[TextInput], tokenizers: Sequence[Tokenizer], *, split: bool) -> list[Tokens]:
    """The tokens of all different texts, for each text encoder; empty where no side has texts.

    Args:
        sides: the groups that are computed.
        split: spread long texts over several chunks; otherwise they are cut, with a warning.
    """
    if not any(side.is_text for side in sides):
        return []
    result = []
    for column, tokenizer in enumerate(tokenizers):
        texts = dict.fromkeys(text for side in sides if side.is_text for text in side.texts[column])
        result.append({text: tokenizer.chunks(text.sections, split=split) for text in texts})
    _warn_of_cuts(result, tokenizers[0].capacity)
    _check_lengths(sides, result)
    lengths = {chunks.ids.size for tokens in result for chunks in tokens.values()}
    lengths |= {side.embeds.shape[1] for side in sides if side.embeds is not None}
    if len(lengths) > 1:  # the shorter ones are padded with empty chunks
        for tokens, tokenizer in zip(result, tokenizers, strict=True):
            tokens[EMPTY] = tokenizer.chunks(EMPTY.sections, split=False)
    return list(result)


def encode(
    tokens: Sequence[Tokens], encoders: Sequence[TextEncoder], run: RunEncoder, *, clip_skip: int
) -> list[EncodedTexts]:
    """Run each text encoder on its tokens; empty for no tokens. `clip_skip` as for `conditioning_from_texts`."""
    if not tokens:
        return []
    layers = sorted({0, clip_skip})
    return [EncodedTexts(t, run, facts.graph, layers) for t, facts in zip(tokens, encoders, strict=True)]


def conditioning_from_texts(
    positive: TextInput,
    negative: TextInput | None,
    encoded: Sequence[EncodedTexts],
    encoders: Sequence[TextEncoder],
    *,
    clip_skip: int,
) -> Conditioning:
    """Assemble the embeddings of a call. Shorter texts and embeddings are padded with empty chunks.

    Args:
        negative: None without guidance.
        encoded: see `encode`.
        clip_skip: final layers to skip, for the positive texts alone, as in diffusers.
    """
    groups = [(positive, clip_skip)] if negative is None else [(negative, 0), (positive, clip_skip)]
    lengths = [side.embeds.shape[1] for side, _ in groups if side.embeds is not None]
    length = max([*lengths, *(texts.longest for texts in encoded)])
    width = sum(facts.hidden_size for facts in encoders)
    contexts = [
        np.zeros((len(side), length, width), np.float32) if side.zeros else _context(side, encoded, skip, length)
        for side, skip in groups
    ]
    pooling = next((i for i, facts in enumerate(encoders) if facts.pooled), None)
    pooled = None if pooling is None else _pooled([side for side, _ in groups], encoded, pooling)
    return Conditioning(np.stack(contexts, axis=1), pooled)


def _check_lengths(sides: Sequence[TextInput], tokens: Sequence[Tokens]) -> None:
    """Every text of a call is padded to the longest one, and every image has its own copy of each side's."""
    longest = max(chunks.ids.size for of_encoder in tokens for chunks in of_encoder.values())
    require_length("the longest text of the call", longest)
    total = longest * sum(map(len, sides))
    if total > MAX_TOKENS:
        raise InputError(
            f"the texts of {len(sides[0])} images, padded to {longest:,} tokens, have {total:,} tokens: expected at "
            f"most {MAX_TOKENS:,}; shorten them, or draw fewer images at once; {raised_by('MAX_TOKENS')}"
        )


def _joined_rows(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _warn_of_cuts(tokens: Sequence[Tokens], capacity: int) -> None:
    """Warn once for each text, also where two text encoders cut it."""
    cut = {text: chunks for of_encoder in tokens for text, chunks in of_encoder.items() if chunks.dropped}
    for chunks in cut.values():
        logger.warning(
            "the prompt has %d tokens and only the first %d%s are used; dropped: %s; long_prompt='chunk' uses all",
            chunks.tokens,
            capacity,
            "" if len(chunks.ids) == 1 else " of each part",
            _shortened(chunks.dropped),
        )


def _context(side: TextInput, encoded: Sequence[EncodedTexts], clip_skip: int, length: int) -> Float32:
    """(images, length, D) of a side's texts or embeddings."""
    if side.embeds is None:
        rows = [_joined(encoded, texts, clip_skip, length) for texts in zip(*side.texts, strict=True)]
        return np.stack(rows)
    missing = length - side.embeds.shape[1]
    if not missing:
        return side.embeds
    empty = _joined(encoded, [EMPTY] * len(encoded), clip_skip, missing)
    return np.concatenate([side.embeds, np.broadcast_to(empty, (len(side), *empty.shape))], axis=1)


def _joined(encoded: Sequence[EncodedTexts], texts: Sequence[Text], clip_skip: int, length: int) -> Float32:
    parts = [e.hidden_states(text, clip_skip, length) for e, text in zip(encoded, texts, strict=True)]
    return np.concatenate(parts, axis=-1)


def _pooled(sides: Sequence[TextInput], encoded: Sequence[EncodedTexts], pooling: int) -> Float32:
    """(images, groups, P); `pooling` is the index of the text encoder that it comes from."""
    result: list[Float32 | None] = [
        np.stack([encoded[pooling].pooled(text) for text in side.texts[pooling]]) if side.is_text else side.pooled
        for side in sides
    ]
    shaped = next(pooled for pooled in reversed(result) if pooled is not None)  # only a negative side may be zeros
    return np.stack([np.zeros_like(shaped) if pooled is None else pooled for pooled in result], axis=1)


def emphasised(hidden_states: Float32, weights: Float32) -> Float32:
    """Hidden states (chunks, S, D) times their tokens' weights (chunks, S), each chunk brought back to its mean.

    This is the emphasis "Original" of AUTOMATIC1111's web UI (its `modules/sd_emphasis.py`) for one image: a chunk
    there is one call of the text encoder. Chunks whose weights are all 1 stay as they are, to the bit.
    """
    weighted = hidden_states * weights[:, :, None]
    before, after = (states.mean(axis=(1, 2), dtype=np.float64, keepdims=True) for states in (hidden_states, weighted))
    factor = np.divide(before, after, out=np.ones_like(before), where=after != 0)
    result: Float32 = weighted * factor.astype(np.float32)
    return result


def _shortened(text: str, length: int = 200) -> str:
    return repr(text) if len(text) <= length else f"{text[:length]!r}… ({len(text):,} characters)"
