"""The library's prompt syntax beside Python's: sections, weights, warnings and errors; and texts in messages."""

import logging
import random
import re
import unicodedata
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.native import INPUT, NativeError
from support.native_text import Reader, c_size_t, parsed

from latentrt.runtime.errors import InputError
from latentrt.runtime.text.prompt import parse

SPACES = [c for c in map(chr, range(0x3001)) if c.isspace()] + ["\u200b", "\u180e", "\ufeff"]
# Beside a word: letters, digits, marks (which are no part of words), connectors, numbers and signs.
BESIDE = [
    "",
    "a",
    "Z",
    "_",
    "é",
    "\u0301",
    "日",
    "٣",
    "½",
    "²",
    "Ⅷ",
    "-",
    "‿",
    "ª",
    "𝟘",
    "\u0903",
    "\u200d",
    " ",
    "\u00a0",
    "中",
]
NUMBERS = ["1.2", "0", "-0.5", "+2", ".5", "-.25", "1.", "00012", "1.1000000000000001", "999", "1000", "0.1" + "7" * 40]
NUMBERS += [
    "1000.0000001",
    "1e3",
    "-",
    ".",
    "1..2",
    "1_0",
    "١",
    "",
    "9" * 400,
    "0" * 400 + "1",
    "." + "0" * 400 + "1",
    "-1001",
]
NUMBERS += ["0." + "0" * 310 + "1", "4.9e-324", "0." + "0" * 323 + "3", "-" + "9" * 320 + ".5", "+0.", "--1", "+.0"]


def python(prompt: str, syntax: str, caplog: pytest.LogCaptureFixture) -> Any:
    """Sections and warnings of the reference, or its error."""
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        try:
            sections = parse(prompt, syntax)
        except InputError as error:
            return str(error).replace("prompt_syntax='plain'", "LATENTRT_SYNTAX_PLAIN")
    return [[(piece.text, piece.weight) for piece in section] for section in sections], caplog.messages


def same(prompts: list[str], caplog: pytest.LogCaptureFixture) -> int:
    """Compare, and return how many fail in both."""
    failed = 0
    for syntax in ("plain", "web-ui"):
        for prompt, got in zip(prompts, parsed(prompts, syntax), strict=True):
            expected = python(prompt, syntax, caplog)
            if isinstance(got, NativeError):
                assert (got.status, str(got)) == (INPUT, expected), prompt
                failed += 1
            else:
                assert got == expected, prompt
    return failed


def brackets(seed: int, count: int) -> list[str]:
    rng = random.Random(seed)
    parts = [
        *"()[]:\\",
        *"()[]",
        "BREAK",
        "AND",
        "break",
        "cat",
        " ",
        "a",
        "日本",
        "<lora:x:1>",
        "|",
        "\u3000",
        "\n",
        "\\\\",
        "1",
        ".",
    ]

    def part() -> str:
        kind = rng.random()
        if kind < 0.15:
            return f":{rng.choice(SPACES)}{rng.choice(NUMBERS[:12])}{rng.choice(['', ' '])})"
        return f"{rng.choice(BESIDE)}BREAK{rng.choice(BESIDE)}" if kind < 0.2 else rng.choice(parts)

    return ["".join(part() for _ in range(rng.randint(0, 25))) for _ in range(count)]


def test_random_brackets(caplog: pytest.LogCaptureFixture) -> None:
    prompts = brackets(17, 4_000)
    failed = same(prompts, caplog)
    assert 20 < failed < 2_000


@settings(max_examples=200, deadline=None, database=None)
@given(st.lists(st.text(alphabet="()[]:\\.,|<>+-0123456789 aBREAKND\u0301\u3000\x1fé", max_size=40), max_size=20))
def test_any_text(prompts: list[str]) -> None:
    for syntax in ("plain", "web-ui"):
        for prompt, got in zip(prompts, parsed(prompts, syntax), strict=True):
            try:
                expected = [[(piece.text, piece.weight) for piece in section] for section in parse(prompt, syntax)]
            except InputError:
                assert isinstance(got, NativeError)
            else:
                assert not isinstance(got, NativeError)
                assert got[0] == expected, prompt


def test_every_form_of_a_weight(caplog: pytest.LogCaptureFixture) -> None:
    forms = [
        "(a:{})",
        "(a: {} )",
        "((a:{}) b:{})",
        "(a:{}",
        "[a:{}]",
        "a:{})",
        "(a:\u3000{}\x1f)",
        "[(a:{})]",
        "(a:{})(b:0)",
    ]
    prompts = [form.replace("{}", number) for form in forms for number in NUMBERS]
    assert same(prompts, caplog) > 20


def test_words_and_their_neighbours(caplog: pytest.LogCaptureFixture) -> None:
    words = ["BREAK", "AND", "Break", "BREAKBREAK", "ANDAND"]
    same([before + word + after for word in words for before in BESIDE for after in BESIDE], caplog)
    same([f"a{space}BREAK{space}b" for space in SPACES], caplog)
    same(["BREAK", "BREAK BREAK", "a BREAK", "BREAK a", " BREAK ", "(a BREAK b:2)", "a, BREAK) b", "\\BREAK"], caplog)


def test_every_character_beside_a_word_and_as_space() -> None:
    points = [c for c in map(chr, range(0x110000)) if not "\ud800" <= c <= "\udfff"]
    texts = [f"(a:{c}2) {c}BREAK" for c in random.Random(4).sample(points, 4_000) + points[:0x600]]
    for text, got in zip(texts, parsed(texts, "web-ui"), strict=True):
        assert not isinstance(got, NativeError)
        expected = [[(piece.text, piece.weight) for piece in section] for section in parse(text, "web-ui")]
        assert got[0] == expected, text


@pytest.mark.slow
def test_every_character_beside_a_word() -> None:
    points = [c for c in map(chr, range(0x110000)) if not "\ud800" <= c <= "\udfff"]
    whole = " ".join(f"{c}BREAK" for c in points)
    (got,) = parsed([whole], "web-ui")
    assert not isinstance(got, NativeError)
    expected = [[(piece.text, piece.weight) for piece in section] for section in parse(whole, "web-ui")]
    assert got[0] == expected


def test_warnings(caplog: pytest.LogCaptureFixture) -> None:
    rng = random.Random(9)
    parts = [
        "<lora:",
        "<lyco:",
        "<",
        ">",
        "[",
        "]",
        "\\[",
        "\\",
        ":",
        "0.5",
        "1",
        " ",
        "|",
        "AND",
        "a",
        "'",
        '"',
        "é",
        "\x07",
        "\u200b",
    ]
    prompts = ["".join(rng.choices(parts, k=rng.randint(1, 14))) for _ in range(4_000)]
    prompts += [
        "<lora:a:1> " * 9,
        "[a:b:0.5] [c|d] AND <lyco:x>",
        "x" * 59 + "<lora:a>",
        "'\"\n\t\r\\ é\U0001f600\ufffe<lora:>",
    ]
    same(prompts, caplog)
    assert any(map(len, (got[1] for got in parsed(prompts, "plain") if not isinstance(got, NativeError))))


def test_text_that_is_not_utf8_is_refused() -> None:
    for text, at in ((b"fine \xff", 5), (b"\xed\xa0\x80", 0), (b"ab\xc3", 2), (b"\xf0\x9f\x98", 0)):
        for syntax in ("plain", "web-ui"):
            (got,) = parsed([text], syntax)
            assert isinstance(got, NativeError)
            assert got.status == INPUT
            assert re.search(rf"is not UTF-8 at byte {at}:", str(got))


def test_deep_brackets_take_no_stack(caplog: pytest.LogCaptureFixture) -> None:
    half = 10_000
    assert (
        same(["(" * half, "[" * half + "a", "([" * half + "a", "([" * half + "a" + "])" * half, ")" * half], caplog)
        == 2
    )


def shown(texts: list[str | bytes], most: int) -> list[tuple[int, str, str]]:
    reader = Reader("probe_utf8", texts, c_size_t(most))
    return [(reader.size(), reader.text(), reader.text()) for _ in texts]


def test_texts_are_shown_as_by_repr() -> None:
    points = [c for c in map(chr, range(0x110000)) if not "\ud800" <= c <= "\udfff"]
    texts = ["".join(points[i : i + 64]) for i in range(0, len(points), 64)]
    texts += [
        "",
        "'",
        '"',
        "'\"",
        "a'b",
        'a"b',
        "\\",
        "\\'",
        "é" * 100,
        unicodedata.lookup("CAT FACE") * 70,
        "x" * 59 + "'",
    ]
    for most in (80, 60, 3, 0):
        for text, (valid, again, message) in zip(texts, shown([*texts], most), strict=True):
            assert valid == 1
            assert again == text
            assert message == repr(text[:most])


def test_utf8_is_read_as_by_python() -> None:
    rng = random.Random(13)
    leads = [b"", b"a", b"\xc3\xa9", b"\xe2\x82\xac", b"\xf0\x9f\x98\x80"]
    texts: list[str | bytes] = [bytes(rng.choices(range(256), k=rng.randint(1, 4))) for _ in range(20_000)]
    edges = [0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0, 0xC1, 0xC2, 0xE0, 0xED, 0xEF, 0xF0, 0xF4, 0xF5, 0xFF]
    texts += [
        rng.choice(leads) + bytes(rng.choices(edges, k=rng.randint(1, 5))) + rng.choice(leads) for _ in range(20_000)
    ]
    for text, (valid, again, _) in zip(texts, shown(texts, 5), strict=True):
        assert isinstance(text, bytes)
        try:
            expected = text.decode()
        except UnicodeDecodeError:
            assert valid == 0
        else:
            assert (valid, again) == (1, expected)
    # What is no UTF-8 is shown all the same.
    assert shown([b"a\xffb\n\xc3"], 80)[0][2] == r"'a\xffb\n\xc3'"
