"""Text of a prompt to sections of weighted pieces. Knows nothing of ids, of lengths or of what a weight does."""

import re
from dataclasses import dataclass

import numpy as np

from latentrt.runtime.errors import InputError

SYNTAXES = ("plain", "web-ui")
GREATEST_WEIGHT = 1000.0
_STEP = 1.1  # what a pair of brackets multiplies or divides by
# No alternative may begin or end with a run that another can share: a hostile prompt must not take quadratic time.
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


@dataclass(frozen=True, slots=True)
class Piece:
    """A text, and how much it counts; 1 is as usual."""

    text: str
    weight: float


Section = tuple[Piece, ...]


def parse(prompt: str, syntax: str = "plain") -> tuple[Section, ...]:
    r"""Sections of a prompt, each of them pieces in order, neighbours of equal weight joined.

    Args:
        syntax: "plain" takes every character as it stands, as diffusers does. "web-ui" is what AUTOMATIC1111's web UI
            and its relatives read: `(word)` counts 1.1 times as much, `[word]` 1/1.1 times, `(word:1.2)` 1.2 times;
            nested, they multiply. `\(`, `\)`, `\[`, `\]` and `\\` are the characters themselves. `BREAK`, in
            capitals and a word of its own, begins a new section. A bracket that is never closed reaches to the end;
            one that was never opened is text. Prompt editing (`[a:b:0.5]`), alternation and `AND` are not read.

    In two things it differs from the web UI: `BREAK` also works inside of brackets, and a backslash before any other
    character stays. Raises `InputError` for what is no text (half of a surrogate pair), and for weights beyond
    ±1000.
    """
    _require_text(prompt)
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
            f"the prompt {prompt[:60]!r} holds half of a surrogate pair ({prompt[error.start]!r}) at character "
            f"{error.start}: it was cut or decoded wrongly. Decode it from UTF-8, or take the character out"
        ) from None


def _weighed(prompt: str) -> tuple[list[str | None], list[float]]:
    """Texts and their weights; None stands for BREAK."""
    texts: list[str | None] = []
    spans: list[tuple[int, int, float]] = []  # first and last + 1 of the texts, and what multiplies their weights
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
            f"the prompt {prompt[:60]!r} has a weight of {weights[np.argmax(np.abs(weights))]:.4g}: weights, nested "
            rf"brackets multiplied, are from -{GREATEST_WEIGHT:g} to {GREATEST_WEIGHT:g}. Brackets that are text are "
            r"written as \( and \), or use the syntax 'plain'"
        )
    return texts, weights.tolist()
