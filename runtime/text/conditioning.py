"""What a call's texts say, as embeddings: tokenized, encoded, weighted. Knows text encoders, not what reads the result.

Texts are encoded without an attention mask, as diffusers does it for Stable Diffusion.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from latentrt.runtime.arrays import Float32, RunGraph
from latentrt.runtime.bundle.manifest import TextEncoder
from latentrt.runtime.request.request import Request

from .given_texts import TextInput
from .prompt import parse
from .tokenizer import Chunks, Tokenizer

logger = logging.getLogger(__name__)

_Groups = Sequence[tuple[TextInput, int]]  # what each group is told, and the layers to skip


@dataclass(frozen=True, slots=True, eq=False)
class Conditioning:
    """What the UNet reads besides latents and timestep; groups are ordered [negative, positive].

    Attributes:
        context: (B, G, S, D) float32: hidden states, those of all text encoders joined along D.
        pooled: (B, G, P) float32, None where the model has no pooled text embedding.
    """

    context: Float32
    pooled: Float32 | None


def conditioning_from_request(
    request: Request,
    encoders: Sequence[TextEncoder],
    tokenizers: Sequence[Tokenizer],
    *,
    run: RunGraph,
    lap: Callable[[str], object] = lambda _: None,
) -> Conditioning:
    """Encode the texts of a request; each different chunk of text is encoded once.

    Texts that are shorter than the longest are padded with empty chunks, and so are embeddings.

    Args:
        encoders, tokenizers: those of the bundle, in its order.
        run: runs a graph of the bundle on inputs by name.
        lap: called after the stages "tokenize" and "text_encoder", where there are texts to encode.
    """
    sides = [(request.negative, 0), (request.positive, request.clip_skip)]  # diffusers skips in the prompt alone
    groups = sides if request.guided else sides[1:]
    lengths = [side.embeds.shape[1] for side, _ in groups if side.embeds is not None]
    encoded: list[_EncodedTexts] = []
    if any(side.is_text for side, _ in groups):
        chunks = [_tokenized(request, groups, column, tokenizer) for column, tokenizer in enumerate(tokenizers)]
        _warn_of_cuts(chunks, tokenizers[0].room)
        lengths += [c.ids.size for by_text in chunks for c in by_text.values()]
        if len(set(lengths)) > 1:
            for by_text, tokenizer in zip(chunks, tokenizers, strict=True):
                by_text[""] = tokenizer.chunks(parse(""), split=False)
        lap("tokenize")
        encoded = [_EncodedTexts(c, run, facts.graph) for c, facts in zip(chunks, encoders, strict=True)]
        lap("text_encoder")
    length, width = max(lengths), sum(facts.hidden_size for facts in encoders)
    contexts = [
        np.zeros((len(side), length, width), np.float32) if side.zeros else _context(side, encoded, skip, length)
        for side, skip in groups
    ]
    pooling = next((i for i, facts in enumerate(encoders) if facts.pooled), None)
    pooled = None if pooling is None else _pooled(groups, encoded, pooling)
    return Conditioning(np.stack(contexts, axis=1), pooled)


def _tokenized(request: Request, groups: _Groups, column: int, tokenizer: Tokenizer) -> dict[str, Chunks]:
    """The different texts for one text encoder."""
    texts = dict.fromkeys(text for side, _ in groups if side.is_text for text in side.texts[column])
    split = request.long_prompt == "chunk"
    return {text: tokenizer.chunks(parse(text, request.prompt_syntax), split=split) for text in texts}


def _warn_of_cuts(chunks: Sequence[Mapping[str, Chunks]], room: int) -> None:
    """One warning for each text, also where two text encoders have no room for it."""
    cut = {text: c for by_text in chunks for text, c in by_text.items() if c.dropped}
    for c in cut.values():
        logger.warning(
            "the prompt has %d tokens and only the first %d%s are used; dropped: %s; long_prompt='chunk' uses all",
            c.tokens,
            room,
            "" if len(c.ids) == 1 else " of each part",
            _shortened(c.dropped),
        )


def _context(side: TextInput, encoded: Sequence["_EncodedTexts"], clip_skip: int, length: int) -> Float32:
    """(images, length, D) of a side's texts or embeddings."""
    if side.embeds is None:
        rows = [_joined(encoded, texts, clip_skip, length) for texts in zip(*side.texts, strict=True)]
        return np.stack(rows)
    missing = length - side.embeds.shape[1]
    if not missing:
        return side.embeds
    empty = _joined(encoded, [""] * len(encoded), clip_skip, missing)
    return np.concatenate([side.embeds, np.broadcast_to(empty, (len(side), *empty.shape))], axis=1)


def _joined(encoded: Sequence["_EncodedTexts"], texts: Sequence[str], clip_skip: int, length: int) -> Float32:
    parts = [e.hidden_states(text, clip_skip, length) for e, text in zip(encoded, texts, strict=True)]
    return np.concatenate(parts, axis=-1)


def _pooled(groups: _Groups, encoded: Sequence["_EncodedTexts"], pooling: int) -> Float32:
    """(images, groups, P); `pooling` is the text encoder that it comes from."""
    result: list[Float32 | None] = [
        np.stack([encoded[pooling].pooled(text) for text in side.texts[pooling]]) if side.is_text else side.pooled
        for side, _ in groups
    ]
    shaped = next(pooled for pooled in reversed(result) if pooled is not None)  # only a negative side may be zeros
    return np.stack([np.zeros_like(shaped) if pooled is None else pooled for pooled in result], axis=1)


class _EncodedTexts:
    """What one text encoder makes of its texts."""

    def __init__(self, chunks: Mapping[str, Chunks], run: RunGraph, graph: str) -> None:
        ids = {row.tobytes(): row for by_text in chunks.values() for row in by_text.ids}
        outputs = run(graph, {"input_ids": np.stack(list(ids.values()))})
        self._hidden_states, self._pooled = outputs["hidden_states"], outputs.get("pooled")
        index = {key: i for i, key in enumerate(ids)}
        self._rows = {text: [index[row.tobytes()] for row in c.ids] for text, c in chunks.items()}
        self._weights = {text: c.weights for text, c in chunks.items()}

    def hidden_states(self, text: str, clip_skip: int, length: int) -> Float32:
        """(length, D) of a text, padded with empty chunks."""
        states = emphasised(self._hidden_states[self._rows[text], clip_skip], self._weights[text])
        states = states.reshape(-1, states.shape[-1])
        empty = self._hidden_states[self._rows[""], clip_skip][0] if len(states) < length else states[:0]
        times = (length - len(states)) // max(1, len(empty))
        result: Float32 = np.concatenate([states, *[empty] * times]).astype(np.float32, copy=False)
        return result

    def pooled(self, text: str) -> Float32:
        """(P,) of a text's first chunk."""
        assert self._pooled is not None
        return np.asarray(self._pooled[self._rows[text][0]], np.float32)


def emphasised(hidden_states: Float32, weights: Float32) -> Float32:
    """Hidden states (chunks, S, D) times their tokens' weights (chunks, S), each chunk brought back to its mean.

    It is what AUTOMATIC1111's web UI calls the emphasis "Original" (its `modules/sd_emphasis.py`), for one image: a
    chunk there is one call of the text encoder. Chunks whose weights are all 1 stay as they are, bit for bit.
    """
    weighted = hidden_states * weights[:, :, None]
    before, after = (states.mean(axis=(1, 2), dtype=np.float64, keepdims=True) for states in (hidden_states, weighted))
    factor = np.divide(before, after, out=np.ones_like(before), where=after != 0)
    result: Float32 = weighted * factor.astype(np.float32)
    return result


def _shortened(text: str, length: int = 200) -> str:
    return repr(text) if len(text) <= length else f"{text[:length]!r}… ({len(text):,} characters)"
