"""The texts and embeddings that each guidance group gets, checked and parsed. Knows nothing of text encoders."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from latentrt.runtime.arrays import Float32
from latentrt.runtime.bundle import Manifest
from latentrt.runtime.errors import InputError

from .prompt import Section, parse


@dataclass(frozen=True, slots=True)
class Text:
    """A prompt as it was given, and its sections."""

    text: str
    sections: tuple[Section, ...]


EMPTY = Text("", parse(""))


@dataclass(frozen=True, slots=True, eq=False)
class TextInput:
    """Texts or embeddings of one guidance group, with one entry for each image.

    Attributes:
        texts: for each text encoder one text for each image; `EMPTY` where embeddings or nothing were given.
        embeds: (images, S, D) float32 hidden states instead of texts, D over all encoders.
        pooled: (images, P) float32, given with `embeds` where the model has a pooled text embedding.
        zeros: whether all embeddings are zeros: nothing was given, and the model was trained that way.
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
        """Repeat every entry `times` times, next to each other."""
        return replace(
            self,
            texts=tuple(tuple(text for text in column for _ in range(times)) for column in self.texts),
            embeds=None if self.embeds is None else np.repeat(self.embeds, times, 0),
            pooled=None if self.pooled is None else np.repeat(self.pooled, times, 0),
        )


def text_inputs_from_call(
    manifest: Manifest, prompt: Any, options: Mapping[str, Any], *, syntax: str, guided: bool
) -> tuple[TextInput, TextInput]:
    """The positive and the negative group's texts, one entry for each prompt; raises `InputError`."""
    if (prompt is None) == (options.get("prompt_embeds") is None):
        raise InputError("pass either a prompt or prompt_embeds (an empty prompt, '', is allowed)")
    positive = _text_input("", prompt, options, manifest, syntax)
    wanted = options.get("negative_prompt")
    negative = _text_input("negative_", wanted, options, manifest, syntax, count=len(positive))
    if guided:
        _require_equal_lengths(positive, negative, manifest.model.text_encoders[0].max_length)
    return positive, negative


def _text_input(
    prefix: str, prompt: Any, options: Mapping[str, Any], manifest: Manifest, syntax: str, *, count: int | None = None
) -> TextInput:
    """`prefix` is the prefix of the options' names, "" or "negative_"; `count` the number of prompts, if known."""
    model, second = manifest.model, options.get(f"{prefix}prompt_2")
    embeds = _embeds(f"{prefix}prompt_embeds", options, manifest)
    if embeds is not None:
        if not (prompt is second is None):
            raise InputError(f"pass either {prefix}prompt or {prefix}prompt_embeds, not both")
        count = _same_count(f"{prefix}prompt_embeds", len(embeds), count)
    if second is not None and len(model.text_encoders) == 1:
        raise InputError(f"{prefix}prompt_2 is for models with two text encoders; {model.family} has one: leave it out")
    first = ("",) * (count or 1) if prompt is None else _texts(f"{prefix}prompt", prompt, count)
    # "" counts as not given here, as it does in diffusers.
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


def _texts(name: str, given: Any, count: int | None) -> tuple[str, ...]:
    if isinstance(given, str):
        return (given,) * (count or 1)
    texts = tuple(given) if isinstance(given, Sequence) else ()
    if not texts or not all(isinstance(text, str) for text in texts):
        raise InputError(f"{name}={given!r}: expected a text or a non-empty list of texts")
    _same_count(name, len(texts), count)
    return texts


def _same_count(name: str, given: int, count: int | None) -> int:
    if count is not None and given != count:
        raise InputError(f"{name} holds {given} for {count} prompts: pass one, or one for each")
    return given


def _embeds(name: str, options: Mapping[str, Any], manifest: Manifest) -> Float32 | None:
    if (given := options.get(name)) is None:
        return None
    array = np.asarray(given, np.float32)
    width = sum(encoder.hidden_size for encoder in manifest.model.text_encoders)
    if array.ndim != 3 or array.shape[2] != width or not array.size:
        raise InputError(f"{name} has the shape {array.shape}; it should be (prompts, tokens, {width})")
    return array


def _pooled(name: str, options: Mapping[str, Any], embeds: Float32 | None, manifest: Manifest) -> Float32 | None:
    """The pooled embedding that goes with `embeds`: needed with them, and only then."""
    given, width = options.get(name), pooled_width(manifest)
    if width is None or embeds is None:
        if given is None:
            return None
        why = "this model has no pooled text embedding" if width is None else "it goes with the embeddings of a prompt"
        raise InputError(f"{name}: {why}; leave it out")
    array = np.asarray(() if given is None else given, np.float32)
    if array.shape != (len(embeds), width):
        has = "is missing" if given is None else f"has the shape {array.shape}"
        raise InputError(f"{name} {has}; beside these embeddings it should be ({len(embeds)}, {width})")
    return array


def pooled_width(manifest: Manifest) -> int | None:
    """P of the pooled text embedding (n, P); None where the model has none."""
    for encoder in manifest.model.text_encoders:
        if encoder.pooled:
            outputs = {output.name: output.shape for output in manifest.graphs[encoder.graph].outputs}
            return int(outputs["pooled"][-1])
    return None


def _require_equal_lengths(positive: TextInput, negative: TextInput, length: int) -> None:
    """Texts grow by whole chunks of `length` tokens to what is beside them; embeddings stay as they are given."""
    given = [side.embeds.shape[1] for side in (positive, negative) if side.embeds is not None]
    if len(set(given)) == 2:
        raise InputError(
            f"prompt_embeds are {given[0]} tokens long and negative_prompt_embeds {given[1]}: make them equally long"
        )
    if (positive.is_text or negative.is_text) and any(tokens % length for tokens in given):
        raise InputError(
            f"embeddings of {given[0]} tokens cannot stand beside a text, whose lengths are multiples of {length}: "
            "pass prompt_embeds and negative_prompt_embeds, or change their length"
        )
