"""Checks and parses the prompts and embeddings of a call, for each guidance group. Does not run text encoders."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from latentrt.runtime.arrays import Float32
from latentrt.runtime.bundle import Manifest
from latentrt.runtime.errors import InputError
from latentrt.runtime.limits import MAX_TOKENS_OF_TEXT, raised_by

from .prompt import Section, parse


@dataclass(frozen=True, slots=True)
class Text:
    """A prompt and its parsed sections."""

    text: str
    sections: tuple[Section, ...]


EMPTY = Text("", parse(""))


@dataclass(frozen=True, slots=True, eq=False)
class TextInput:
    """Texts or embeddings of one guidance group, one entry per image.

    Attributes:
        texts: for each text encoder, one text per image; `EMPTY` if embeddings or nothing were given.
        embeds: (images, S, D) float32 hidden states instead of texts; D is the sum over all encoders.
        pooled: (images, P) float32, with `embeds` if the model has a pooled text embedding.
        zeros: whether all embeddings are zero: no text was given, and the model was trained that way.
    """

    texts: tuple[tuple[Text, ...], ...]
    embeds: Float32 | None
    pooled: Float32 | None
    zeros: bool = False

    def __len__(self) -> int:
        return len(self.texts[0])

    @property
    def is_text(self) -> bool:
        """Whether there are texts to encode."""
        return self.embeds is None and not self.zeros

    def repeated(self, times: int) -> "TextInput":
        """Repeat every entry `times` times, like `np.repeat`."""
        return replace(
            self,
            texts=tuple(tuple(text for text in column for _ in range(times)) for column in self.texts),
            embeds=None if self.embeds is None else np.repeat(self.embeds, times, 0),
            pooled=None if self.pooled is None else np.repeat(self.pooled, times, 0),
        )


def text_inputs_from_call(
    manifest: Manifest, prompt: Any, options: Mapping[str, Any], *, syntax: str, guided: bool
) -> tuple[TextInput, TextInput]:
    """The positive and the negative group, one entry per prompt; raises `InputError` for invalid arguments."""
    if (prompt is None) == (options.get("prompt_embeds") is None):
        raise InputError("pass either prompt or prompt_embeds; an empty prompt ('') is allowed")
    positive = _text_input("", prompt, options, manifest, syntax)
    wanted = options.get("negative_prompt")
    negative = _text_input("negative_", wanted, options, manifest, syntax, count=len(positive))
    if guided:
        _require_equal_lengths(positive, negative, manifest.model.text_encoders[0].max_length)
    return positive, negative


def _text_input(
    prefix: str, prompt: Any, options: Mapping[str, Any], manifest: Manifest, syntax: str, *, count: int | None = None
) -> TextInput:
    """`prefix` of the option names is "" or "negative_"; `count` is the number of prompts, if known."""
    model, second = manifest.model, options.get(f"{prefix}prompt_2")
    embeds = _embeds(f"{prefix}prompt_embeds", options, manifest)
    if embeds is not None:
        if not (prompt is second is None):
            raise InputError(f"pass either {prefix}prompt or {prefix}prompt_embeds, not both")
        count = _same_count(f"{prefix}prompt_embeds", len(embeds), count)
    if second is not None and len(model.text_encoders) == 1:
        raise InputError(f"{prefix}prompt_2 is for models with two text encoders; {model.family} has one: leave it out")
    first = ("",) * (count or 1) if prompt is None else _texts(f"{prefix}prompt", prompt, count)
    # As in diffusers, "" counts as not given.
    others = _texts(f"{prefix}prompt_2", second, len(first)) if second else first
    nothing = prompt is second is embeds is None
    parsed = {text: Text(text, parse(text, syntax)) for text in {*first, *others}}
    columns = (first, *[others] * (len(model.text_encoders) - 1))
    return TextInput(
        texts=tuple(tuple(parsed[text] for text in column) for column in columns),
        embeds=embeds,
        pooled=_pooled(f"{prefix}pooled_prompt_embeds", options, embeds, manifest),
        zeros=nothing and model.force_zeros_for_empty_prompt,
    )


def _texts(name: str, given: str | Sequence[str], count: int | None) -> tuple[str, ...]:
    if isinstance(given, str):
        return (given,) * (count or 1)
    texts = tuple(given)
    _same_count(name, len(texts), count)
    return texts


def _same_count(name: str, given: int, count: int | None) -> int:
    if count is not None and given != count:
        raise InputError(f"{name} has {given} entries for {count} prompts: pass one, or one per prompt")
    return given


def _embeds(name: str, options: Mapping[str, Any], manifest: Manifest) -> Float32 | None:
    if (given := options.get(name)) is None:
        return None
    array = np.asarray(given, np.float32)
    width = sum(encoder.hidden_size for encoder in manifest.model.text_encoders)
    if array.ndim != 3 or array.shape[2] != width or not array.size:
        raise InputError(f"{name} has shape {array.shape}; expected (prompts, tokens, {width})")
    require_length(name, array.shape[1])
    return array


def _pooled(name: str, options: Mapping[str, Any], embeds: Float32 | None, manifest: Manifest) -> Float32 | None:
    """The pooled embedding for `embeds`; required with `embeds`, not allowed without."""
    given, width = options.get(name), pooled_width(manifest)
    if width is None or embeds is None:
        if given is None:
            return None
        why = "this model has no pooled text embedding" if width is None else "only allowed with prompt embeddings"
        raise InputError(f"{name}: {why}; leave it out")
    array = np.asarray(() if given is None else given, np.float32)
    if array.shape != (len(embeds), width):
        has = "is missing" if given is None else f"has shape {array.shape}"
        raise InputError(f"{name} {has}; expected ({len(embeds)}, {width}) for these prompt embeddings")
    return array


def require_length(what: str, tokens: int) -> None:
    """Raise `InputError` for more tokens than one text may have."""
    if tokens > MAX_TOKENS_OF_TEXT:
        raise InputError(
            f"{what} has {tokens:,} tokens: expected at most {MAX_TOKENS_OF_TEXT:,}; {raised_by('MAX_TOKENS_OF_TEXT')}"
        )


def pooled_width(manifest: Manifest) -> int | None:
    """P of the pooled text embedding (n, P); None if the model has none."""
    for encoder in manifest.model.text_encoders:
        if encoder.pooled:
            outputs = {output.name: output.shape for output in manifest.graphs[encoder.graph].outputs}
            return int(outputs["pooled"][-1])
    return None


def _require_equal_lengths(positive: TextInput, negative: TextInput, length: int) -> None:
    """Texts can be padded by whole chunks of `length` tokens to match the other group; embeddings cannot."""
    given = [side.embeds.shape[1] for side in (positive, negative) if side.embeds is not None]
    if len(set(given)) == 2:
        raise InputError(
            f"prompt_embeds have {given[0]} tokens, negative_prompt_embeds have {given[1]}: make the lengths equal"
        )
    if (positive.is_text or negative.is_text) and any(tokens % length for tokens in given):
        raise InputError(
            f"embeddings of {given[0]} tokens cannot be combined with a text, whose length is a multiple of {length}: "
            "pass both prompt_embeds and negative_prompt_embeds, or change their length"
        )
