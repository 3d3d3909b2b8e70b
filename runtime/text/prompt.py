"""Parses a prompt into sections of weighted pieces. Knows nothing about tokens or how weights are applied."""

import logging
import re
from dataclasses import dataclass

import numpy as np

from latentrt.runtime.errors import InputError

logger = logging.getLogger(__name__)

SYNTAXES = ("plain", "web-ui")
GREATEST_WEIGHT = 1000.0
_STEP = 1.1  # factor of a pair of brackets
# No alternative may start or end with a repetition that another one can also match: that would allow quadratic time.
_TOKEN = re.compile(
    r"""
    \\(?P<escaped>[()\[\]\\])
    | :\s*(?P<weight>[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+))\s*\)
    | (?P<end>\bBREAK\b)
    | (?P<bracket>[()\[\]])
    """,
    re.VERBOSE,
)
_SPACE = re.compile(r"\s*")
# What web UIs read and latentrt does not: pattern, the syntaxes that it is told for, what it means, what to do instead.
_UNREAD = (
    (
        re.compile(r"<(?:lora|lyco):[^<>]*>"),
        SYNTAXES,
        "a LoRA in web UIs",
        "remove it, and load the file with --lora FILE:WEIGHT or set_loras",
    ),
    (
        re.compile(r"(?<!\\)\[[^\[\]]*:\s*[0-9.]+\s*\]"),
        ("web-ui",),
        "prompt editing in web UIs",
        "write one prompt for all steps; weights are (word:1.2), or \\[ and \\] for brackets",
    ),
    (
        re.compile(r"(?<!\\)\[[^\[\]]*\|[^\[\]]*\]"),
        ("web-ui",),
        "alternation in web UIs",
        "name one of the words",
    ),
    (
        re.compile(r"\bAND\b"),
        ("web-ui",),
        "two prompts at once in web UIs",
        "write a comma, or 'and' if it is a word; BREAK begins a new section",
    ),
)


@dataclass(frozen=True, slots=True)
class Piece:
    """A text and its weight; 1 is neutral."""

    text: str
    weight: float


Section = tuple[Piece, ...]


def parse(prompt: str, syntax: str = "plain") -> tuple[Section, ...]:
    r"""Split a prompt into sections of weighted pieces; adjacent pieces of equal weight are joined.

    Args:
        syntax: "plain" takes every character literally, as diffusers does. "web-ui" is the syntax of AUTOMATIC1111's
            web UI and its forks: `(word)` has weight 1.1, `[word]` 1/1.1, `(word:1.2)` 1.2; nested weights multiply.
            `\(`, `\)`, `\[`, `\]` and `\\` are literal characters. `BREAK`, in capitals and as a separate word,
            starts a new section. An unclosed bracket extends to the end; an unopened one is text. Prompt editing
            (`[a:b:0.5]`), alternation and `AND` are text, with a warning; so is `<lora:name:0.8>`, in both syntaxes.

    Two differences from the web UI: `BREAK` also works inside brackets, and a backslash before any other character is
    kept. Raises `InputError` for invalid text (half of a surrogate pair), and for weights beyond ±1000.
    """
    _require_text(prompt)
    _warn_of_unread(prompt, syntax)
    if syntax == "plain":
        return ((Piece(prompt, 1.0),),)
    texts, weights = _weighed(prompt)
    sections: list[list[Piece]] = [[]]
    for text, weight in zip(texts, weights, strict=True):
        if text is None:
            sections.append([])
            continue
        section = sections[-1]
        if section and section[-1].weight == weight:
            section[-1] = Piece(section[-1].text + text, weight)
        elif text:
            section.append(Piece(text, weight))
    if len(sections) > 1 and not sections[-1]:
        sections.pop()  # nothing comes after the last BREAK
    return tuple(map(tuple, sections))


def _require_text(prompt: str) -> None:
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"the prompt {prompt[:60]!r} contains half of a surrogate pair ({prompt[error.start]!r}) at character "
            f"{error.start}: it was truncated or decoded wrongly. Decode it as UTF-8, or remove the character"
        ) from None


def _warn_of_unread(prompt: str, syntax: str) -> None:
    told = [
        f"{found[0]} ({meaning}): {instead}"
        for pattern, syntaxes, meaning, instead in _UNREAD
        if syntax in syntaxes and (found := pattern.search(prompt))
    ]
    if told:
        shown = prompt if len(prompt) <= 60 else prompt[:60] + "…"
        logger.warning("the prompt %r holds what is read as text here: %s", shown, "; ".join(told))


def _weighed(prompt: str) -> tuple[list[str | None], list[float]]:
    """Texts and their weights; None stands for BREAK."""
    texts: list[str | None] = []
    spans: list[tuple[int, int, float]] = []  # range of the texts, and the factor of their weights
    opened: dict[str, list[int]] = {"(": [], "[": []}
    at = 0
    for token in _TOKEN.finditer(prompt):
        text, at = prompt[at : token.start()], token.end()
        if token["end"]:
            texts += [text.rstrip(), None]
            at = _SPACE.match(prompt, at).end()  # type: ignore[union-attr]  # it always matches
            continue
        texts.append(text)
        bracket, weight = token["bracket"], token["weight"]
        if bracket in opened:
            opened[bracket].append(len(texts))
        elif (weight or bracket == ")") and opened["("]:
            spans.append((opened["("].pop(), len(texts), float(weight) if weight else _STEP))
        elif bracket == "]" and opened["["]:
            spans.append((opened["["].pop(), len(texts), 1 / _STEP))
        else:
            texts.append(token["escaped"] or token[0])
    texts.append(prompt[at:])
    spans += [(start, len(texts), _STEP) for start in reversed(opened["("])]
    spans += [(start, len(texts), 1 / _STEP) for start in reversed(opened["["])]
    weights = np.ones(len(texts))
    with np.errstate(over="ignore", invalid="ignore"):
        for start, end, factor in spans:
            weights[start:end] *= factor
    if not (np.abs(weights) <= GREATEST_WEIGHT).all():
        raise InputError(
            f"the prompt {prompt[:60]!r} has a weight of {weights[np.argmax(np.abs(weights))]:.4g}: expected weights "
            rf"(products of nested brackets) from -{GREATEST_WEIGHT:g} to {GREATEST_WEIGHT:g}. For literal brackets "
            r"write \( and \), or use prompt_syntax='plain'"
        )
    return texts, weights.tolist()
