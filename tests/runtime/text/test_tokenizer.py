"""Token ids against transformers' tokenizer on random Unicode texts; chunks against a simple reference."""

import random
from functools import cache
from typing import Any

import numpy as np
import pytest
from support.exports import Exported

from latentrt.runtime import InputError, Pipeline
from latentrt.runtime.text import Tokenizer
from latentrt.runtime.text.prompt import Piece, parse

KNOWN = [49406, 320, 1125, 539, 550, 18376, 6765, 320, 4558, 525, 7496, 49407]
COMMA = 267


def test_known_ids(pipe: Pipeline) -> None:
    ids = pipe.tokenizer.encode(["a photo of an astronaut riding a horse on mars"]).ids[0]
    assert ids[: len(KNOWN)].tolist() == KNOWN
    assert set(ids[len(KNOWN) :].tolist()) == {49407}


WORDS = """
    Cat don't you've 1234 3.5 !!! naïve 日本語 Ω ß a_b -- (word:1.2) ﬁ İ ǅ 한국어 가 ने العربية ก็ ½ ٣ 𝟘 Ⅷ 🎨 🇩🇪 👍🏽
    <|endoftext|> <|startoftext|> <|endoftext </w> a</w> 'LL ’s
"""
PIECES = [
    *WORDS.split(),
    *("e\u0301", "z\u0335\u0321\u0340", "👩\u200d🚀", "👨\u200d👩\u200d👧\u200d👦", "🏳\ufe0f\u200d🌈", "x" * 40),
    *("\t", "\n", "\r\n", "  ", "\u00a0", "\u200b", "\ufeff", "\u202e", "\x00", "\x1b", "\x7f", "\x85", "\ufffd"),
]


@cache
def texts(count: int) -> list[str]:
    """Random mixtures of the pieces, of words, and of characters of all Unicode planes; up to 300 words."""
    rng = random.Random(4)

    def character() -> str:
        top = rng.choice([0x80, 0x250, 0x3000, 0xD800, 0x10000, 0x20000, 0x30000, 0x40000, 0xE1000, 0x110000])
        code = rng.randrange(top)
        return chr(code) if not 0xD800 <= code < 0xE000 else " "

    def word() -> str:
        kind = rng.random()
        if kind < 0.4:
            return "".join(rng.choices("aeioudlmnrstABC", k=rng.randint(1, 9)))
        return rng.choice(PIECES) if kind < 0.7 else "".join(character() for _ in range(rng.randint(1, 4)))

    lengths = (300 if i % 100 == 0 else rng.randint(0, 12) for i in range(count))
    return [rng.choice(["", " "]).join(word() for _ in range(length)) for length in lengths]


@pytest.mark.parametrize(
    ("name", "count"),
    [("sd1-fp32", 1_000), pytest.param("sd1-fp32", 10_000, marks=pytest.mark.slow), ("sd2-fp16", 500)],
)
def test_ids_are_those_of_transformers(exported: Any, name: str, count: int) -> None:
    from transformers import CLIPTokenizer

    case: Exported = exported(name)
    reference = CLIPTokenizer.from_pretrained(case.checkpoint / "tokenizer")
    prompts = ["", " ", *texts(10_000)[:count]]
    expected = reference(prompts, padding="max_length", max_length=77, truncation=True).input_ids
    with Pipeline.load(case.bundle, device="cpu") as pipe:
        got = pipe.tokenizer.encode(prompts).ids
    wrong = np.flatnonzero((got != np.array(expected)).any(axis=1))
    assert not wrong.size, [prompts[i] for i in wrong[:3]]


def test_half_a_surrogate_pair_is_refused(pipe: Pipeline) -> None:
    with pytest.raises(InputError, match=r"half of a surrogate pair"):
        pipe.tokenizer.encode(["fine", "a \udc00 b"])
    with pytest.raises(InputError, match=r"half of a surrogate pair"):
        pipe.stream("a", negative_prompt="\ud800")  # at the call, not at the first step


def chunks_one_by_one(ids: list[int]) -> list[list[int]]:
    """Put ids into chunks of 75 one by one. When a chunk is full, the ids after its last comma move to the next one,
    if the comma is among its last 20 ids and the next id is not a comma."""
    chunks: list[list[int]] = [[]]
    for token in ids:
        if len(chunks[-1]) == 75:
            moved: list[int] = []
            if token != COMMA and COMMA in chunks[-1][-20:]:
                while chunks[-1][-1] != COMMA:
                    moved.insert(0, chunks[-1].pop())
            chunks.append(moved)
        chunks[-1].append(token)
    return chunks


@pytest.mark.parametrize("commas", [0, 0.02, 0.1, 0.7])
def test_chunks_end_after_commas(pipe: Pipeline, commas: float) -> None:
    rng = random.Random(int(100 * commas))
    for length in (0, 1, 74, 75, 76, 149, 150, 151, 400, 1000):
        words = [
            " ," if rng.random() < commas else f" {rng.choice(['cat', 'dog', 'red', 'sun'])}" for _ in range(length)
        ]
        text = " a".join(words) if commas == 0.7 else "".join(words)  # ", ," would be one token
        ids = pipe.tokenizer._tokenizer.encode(text, add_special_tokens=False).ids
        got = pipe.tokenizer.chunks(parse(text), split=True)
        assert (got.tokens, got.dropped) == (len(ids), "")
        expected = [[49406, *chunk, 49407] for chunk in chunks_one_by_one(ids)]
        assert got.ids.tolist() == [row + [49407] * (77 - len(row)) for row in expected]


@pytest.mark.parametrize(("before", "first"), [(54, 75), (55, 56), (73, 74), (74, 75), (75, 75)])
def test_a_comma_is_near_within_twenty_ids(pipe: Pipeline, before: int, first: int) -> None:
    got = pipe.tokenizer.chunks(parse("cat " * before + ", " + "dog " * 40), split=True)
    assert got.ids[0].tolist().index(49407) == first + 1
    assert len(got.ids) == 2


def test_weights_stand_at_their_ids(pipe: Pipeline) -> None:
    sections = parse("a (red cat:1.5), BREAK [sun] b", "web-ui")
    got = pipe.tokenizer.chunks(sections, split=False)
    a, red, cat, sun, b = (pipe.tokenizer.encode([word]).ids[0, 1] for word in ("a", "red", "cat", "sun", "b"))
    assert got.ids[:, :5].tolist() == [[49406, a, red, cat, COMMA], [49406, sun, b, 49407, 49407]]
    assert got.weights[:, :5].tolist() == [[1, 1, 1.5, 1.5, 1], [1, pytest.approx(1 / 1.1), 1, 1, 1]]
    assert (got.weights[:, 5:] == 1).all()


def test_what_has_no_room_is_dropped_and_told(pipe: Pipeline) -> None:
    words = " ".join(f"cat{i % 10}" for i in range(50))  # two tokens each
    got = pipe.tokenizer.chunks(parse(f"(sun:2) {words} (sea:2) end BREAK ok", "web-ui"), split=False)
    assert got.ids.shape == (2, 77)
    assert got.tokens == 1 + 100 + 2 + 1
    assert got.dropped == f"{words[37 * 5 :]} sea end"
    assert got.weights[0, 1] == 2
    assert (got.weights[0, 2:] == 1).all()


def test_small_text_lengths_work(pipe: Pipeline) -> None:
    from dataclasses import replace

    facts = replace(pipe.bundle.manifest.model.text_encoders[0], max_length=5, pad=0)
    tokenizer = Tokenizer(pipe.tokenizer._tokenizer, facts)
    got = tokenizer.chunks([[Piece(",", 1.0), Piece("cat dog sun sea", 1.0)]], split=True)  # type: ignore[list-item]
    ids = [tokenizer.encode([word]).ids[0, 1] for word in ("cat", "dog", "sun", "sea")]
    rows = [[49406, COMMA, 49407, 0, 0], [49406, *ids[:3], 49407], [49406, ids[3], 49407, 0, 0]]
    assert got.ids.tolist() == rows
