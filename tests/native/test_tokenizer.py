"""The library's tokenizer beside Python's: ids and places of pieces, chunks, and files that are refused."""

import copy
import json
import random
import time
import unicodedata
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.native import BUNDLE, INPUT, NativeError
from support.native_text import CLIP, FACTS, NativeTokenizer, Pair, with_model
from tokenizers import normalizers

from latentrt.export.checkpoint.tokenizer_files import Vocabulary
from latentrt.runtime.text.prompt import parse

POINTS = [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000]
MARKS = [c for c in POINTS if unicodedata.combining(c)]
# First and last characters of a few scripts, signs and planes, and of what is nothing yet.
BLOCKS = [
    *((0x20, 0x7F), (0xA0, 0x250), (0x250, 0x3FF), (0x400, 0x530), (0x531, 0x590), (0x591, 0x7C0), (0x900, 0xDFF)),
    *((0xE00, 0x1000), (0x10A0, 0x1250), (0x1100, 0x11FF), (0x13A0, 0x1400), (0x1E00, 0x2000), (0x2000, 0x2BFF)),
    *((0x3040, 0x3100), (0x4E00, 0x5000), (0xA640, 0xA7FF), (0xAC00, 0xAD00), (0xF900, 0xFB50), (0xFB50, 0xFE10)),
    *(
        (0x10400, 0x10450),
        (0x1D15E, 0x1D800),
        (0x1F300, 0x1FA00),
        (0x2F800, 0x2FA20),
        (0xE0000, 0xE0100),
        (1, 0x110000),
    ),
]
CASES: dict[str, Callable[[str], str]] = {
    "alone": lambda c: c,
    "between letters": lambda c: f"a{c}b",
    "twice": lambda c: c + c,
}


@cache
def clip() -> Pair:
    return Pair.of(CLIP)


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """SDXL's second tokenizer, which pads with "!", with words of textual inversions."""
    tokenizer, words = Vocabulary.of_clip("!").load({"<cat-toy>": 3, "Emb_X": 1, "é\u0323": 2, "caFÉ": 2})
    file = tmp_path_factory.mktemp("sdxl") / "tokenizer.json"
    file.write_text(tokenizer.backend_tokenizer.to_str(), encoding="utf-8")
    return Pair.of(file, FACTS | {"pad": 0}, words)


@cache
def content() -> dict[str, Any]:
    return json.loads(CLIP.read_bytes())  # type: ignore[no-any-return]


def pair_of(folder: Path, data: Any, embeddings: dict[str, list[int]] | None = None) -> Pair:
    file = folder / "tokenizer.json"
    file.write_text(json.dumps(data), encoding="utf-8")
    return Pair.of(file, FACTS, embeddings)


def joined(words: list[str], count: int) -> list[str]:
    """Texts of many words each: Python's tokenizer needs most of its time for each call."""
    return [" ".join(words[i : i + count]) for i in range(0, len(words), count)]


def some_word(rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.3:
        return "".join(rng.choices("aeioudlmnrstABCİß'’.,-", k=rng.randint(1, 12)))
    first, last = rng.choice(BLOCKS)
    codes = [rng.randrange(first, last) for _ in range(rng.randint(1, 6))]
    return "".join(chr(code) for code in codes if not 0xD800 <= code < 0xE000)


def some_texts(seed: int, count: int) -> list[str]:
    rng = random.Random(seed)
    space = ["", " ", " ", "  ", "\t", "\n", "\u3000", "\u00a0 ", "\x1f"]
    return ["".join(some_word(rng) + rng.choice(space) for _ in range(rng.randint(0, 15))) for _ in range(count)]


@pytest.mark.parametrize("case", CASES)
def test_every_letter_and_sign(case: str) -> None:
    words = [
        CASES[case](c) for c in POINTS if unicodedata.category(c) not in ("Cn", "Co") and not "\u4e01" <= c <= "\u9fff"
    ]
    words = [word for word in words if not ("\U00020000" <= word[0] <= "\U0003ffff" or "가" < word[0] < "힐")]
    assert not clip().different(joined(words, 1000))


@pytest.mark.slow
@pytest.mark.parametrize("case", ["between letters", "twice"])
def test_every_code_point(case: str) -> None:
    assert not clip().different(joined([CASES[case](c) for c in POINTS], 2000))


@pytest.mark.slow
def test_every_code_point_as_a_text_of_its_own() -> None:
    assert not clip().different(POINTS)


@pytest.mark.parametrize("each", [8, pytest.param(None, marks=pytest.mark.slow)])
def test_every_canonical_composition(each: int | None) -> None:
    """All of them, and pairs of what may come first with what may come last: all, or some with each first."""
    nfc = normalizers.NFC()
    split = {c: unicodedata.normalize("NFD", c) for c in POINTS}
    parts = [text for c, text in split.items() if text != c and not "가" <= c <= "힣"]
    singles = [*parts, *map(nfc.normalize_str, parts), *(c for c, text in split.items() if text != c)]
    assert not clip().different(joined(singles, 500))
    firsts = sorted({nfc.normalize_str(text[:-1]) for text in parts} | {text[0] for text in parts})
    lasts = sorted({text[-1] for text in parts} | {"\u1161", "\u11a7", "\u11a8", "\u11c2", "\u11c3"})
    rng = random.Random(11)
    pairs = [first + last for first in firsts for last in rng.sample(lasts, each or len(lasts))]
    assert not clip().different(joined(pairs, 500))


def test_hangul() -> None:
    rng = random.Random(12)
    jamo = [*map(chr, range(0x1100, 0x1200)), *"가각갂힣한하"]
    words = ["".join(rng.choices(jamo, k=rng.randint(2, 5))) for _ in range(10_000)]
    assert not clip().different(joined(words, 200))


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_runs_of_combining_marks(seed: int) -> None:
    rng = random.Random(seed)
    bases = ["", "a", "e", "E", "\u0915", "\u1100", "ệ", "ǖ", "Å", "\u0b47", "q", "\u0cc6", "\u05d1", "ཱི", "𝅗"]
    some = rng.sample(MARKS, 60) + list("\u0301\u0323\u0302\u031b\u0345\u0338\u0344\u3099\u05bc\u0cc2\u0cd5\u0f73")
    runs = [rng.choice(bases) + "".join(rng.choices(some, k=rng.randint(1, 7))) for _ in range(10_000)]
    assert not clip().different(joined(runs, 20) + runs[:1000])


@pytest.mark.parametrize("count", [1_500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_random_texts(count: int, sdxl: Pair) -> None:
    texts = some_texts(count, count)
    assert not clip().different(texts)
    assert not sdxl.different(texts)


def test_words_that_are_added(sdxl: Pair) -> None:
    rng = random.Random(3)
    words = [
        "<|startoftext|>",
        "<|endoftext|>",
        "<cat-toy>",
        "<cat-toy>_1",
        "<cat-toy>_",
        "emb_x",
        "e\u0323\u0301",
        "cafe\u0301",
        "!",
    ]
    cases: list[Callable[[str], str]] = [str.upper, str.lower, str.title, str.swapcase, str]
    glue = ["", "", "x", " ", "1", "é", "<", "|>", "!", ".", "\u0301", "  ", "<|", "'s", "\u3000"]
    texts = []
    for _ in range(3_000):
        parts = (rng.choice(cases)(rng.choice(words)) + rng.choice(glue) for _ in range(rng.randint(1, 5)))
        texts.append(rng.choice(glue) + "".join(parts))
    assert not sdxl.different(texts)
    assert not clip().different(texts)
    ((ids, _),) = sdxl.native.located(["a <CAT-TOY>!"])
    assert ids.tolist() == [320, 49408, 49409, 49410, 0]


def test_a_file_of_an_older_library(tmp_path: Path) -> None:
    """Merges as texts, special words that are found in lower case, and a pattern without them."""
    old = copy.deepcopy(content())
    old["model"]["merges"] = ["#version: 0.2", *(" ".join(pair) for pair in old["model"]["merges"])]
    split, byte_level = old["pre_tokenizer"]["pretokenizers"]
    split["pattern"]["Regex"] = split["pattern"]["Regex"].split("<\\|endoftext\\|>|")[1]
    del byte_level["use_regex"]
    for token in old["added_tokens"]:
        token["normalized"] = True
    pair = pair_of(tmp_path, old)
    texts = ["!<|endoftext|>!", "a<|STARTofTEXT|>b <|endof text|>", *some_texts(21, 200)]
    assert not pair.different(texts)
    only_written = copy.deepcopy(content())
    only_written["added_tokens"][0]["normalized"] = False
    assert not pair_of(tmp_path, only_written).different([*texts, "<|startoftext|>! <|StartOfText|>!<|StartOfText|>"])


def test_words_that_hold_spaces_or_begin_others(tmp_path: Path) -> None:
    flags = {"single_word": False, "lstrip": False, "rstrip": False}
    words = [("<Cat>", True, False), ("<DOG>", True, True)]
    words += [
        (" x", True, False),
        ("y ", True, False),
        ("q  Q", True, False),
        ("<cat", False, False),
        ("ab", True, True),
    ]
    words += [("abc", True, False), ("İ", True, False)]
    vocabulary, new, tokens = content()["model"]["vocab"], 49408, []
    for word, normalized, special in words:
        number = vocabulary.get(word, new)
        new += number == new
        tokens.append({"id": number, "content": word, "normalized": normalized, "special": special, **flags})
    changed = content() | {"added_tokens": [*content()["added_tokens"], *tokens]}
    pair = pair_of(tmp_path, changed, {"<dog>": [49409, 7, 8, 9], "twice": [320, 5]})
    rng = random.Random(5)
    pieces = ["<cat", ">", "<CAT", "<dog>", "<DOG>", " ", "  ", "\t", "x", "Y", "q", "Q", "a", "b", "C", "i̇", "İ", "ab"]
    texts = ["".join(rng.choices(pieces, k=rng.randint(1, 9))) for _ in range(3_000)]
    assert not pair.different(texts)


def test_a_long_word_takes_no_longer_than_many_short_ones() -> None:
    rng = random.Random(8)
    texts = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=1_000_000)), "ab" * 500_000, "é" * 300_000]
    started = time.perf_counter()
    found = list(clip().native.located(texts))
    assert time.perf_counter() - started < 30
    # The same, by pieces: merges reach no further than a token is long.
    (short, _), (again, _) = clip().native.located([texts[0][:2000], texts[0][:3000]])
    assert np.array_equal(found[0][0][: len(short) - 40], short[:-40])
    assert np.array_equal(again[: len(short) - 40], short[:-40])
    assert not clip().different([texts[0][:20_000], "ab" * 5_000])


BRACKETED = ["(a cat:1.3), [b]", "a BREAK b, c", "(a:0)", "", "BREAK", "a (b:-1.5) \\(c\\) (((d)))", "(,:2)"]


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("syntax", ["plain", "web-ui"])
def test_chunks(syntax: str, split: bool, sdxl: Pair) -> None:
    rng = random.Random(f"{syntax} {split}")
    words = [
        *"abc",
        ",",
        ",",
        "cat",
        "<cat-toy>",
        " ",
        "\u3000",
        "BREAK",
        "(x:1.21)",
        "[",
        ")",
        "\x1f",
        "naïve café",
        "İ",
        "!",
    ]
    prompts = [
        *BRACKETED,
        "a " * 75,
        "a, " * 60,
        "a " * 74 + "<cat-toy> b",
        "a " * 75 + "\u2003 b \x1f",
        "<cat-toy>" * 26,
    ]
    prompts += [" ".join(rng.choices(words, k=rng.randint(0, 260))) for _ in range(250)]
    cut = 0
    for pair in (clip(), sdxl):
        native = pair.native.chunks(prompts, syntax=syntax, split=split)
        for prompt, got in zip(prompts, native, strict=True):
            expected = pair.python.chunks(parse(prompt, syntax), split=split)
            assert np.array_equal(got.ids, expected.ids), prompt
            assert np.array_equal(got.weights, expected.weights), prompt
            assert (got.tokens, got.dropped) == (expected.tokens, expected.dropped), prompt
            cut += bool(got.dropped)
    assert (cut > 60) != split


def test_text_that_is_not_utf8_is_refused() -> None:
    for text in (b"a\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"abc\xe2\x82"):
        with pytest.raises(NativeError, match="UTF-8") as caught:
            list(clip().native.located([text]))
        assert caught.value.status == INPUT


def changed(change: Callable[[dict[str, Any]], object]) -> bytes:
    data = {key: copy.deepcopy(value) for key, value in content().items() if key != "model"}
    data["model"] = dict(content()["model"])
    change(data)
    return json.dumps(data).encode()


def small(**changes: Any) -> bytes:
    """A file with a small vocabulary."""
    vocab = {"a": 0, "b": 1, "ab": 2, "b</w>": 3, "<|startoftext|>": 49406, "<|endoftext|>": 49407}
    return with_model(content(), **{"vocab": vocab, "merges": [["a", "b"]], **changes})


def added(*tokens: dict[str, Any]) -> bytes:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}
    whole = [{"id": 49408 + i, "content": f"<{i}>", **flags, **token} for i, token in enumerate(tokens)]
    return json.dumps(content() | {"added_tokens": [*content()["added_tokens"], *whole]}).encode()


def normalizer(index: int, **changes: Any) -> bytes:
    return changed(lambda data: data["normalizer"]["normalizers"][index].update(changes))


def pre_tokenizer(index: int, **changes: Any) -> bytes:
    return changed(lambda data: data["pre_tokenizer"]["pretokenizers"][index].update(changes))


REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "parse error"),
    "not JSON": (lambda: b"\x80\x03}q", "parse error"),
    "not UTF-8": (lambda: b'{"a": "\xff"}', "parse error|UTF-8"),
    "half of a surrogate pair": (lambda: b'{"a": "\\ud800"}', "surrogate"),
    "a list": (lambda: b"[]", "it is"),
    "a number": (lambda: b"7", "it is"),
    "truncated": (lambda: CLIP.read_bytes()[:500_000], "parse error"),
    "nested": (lambda: b'{"a":' * 100_000, "nested too deeply"),
    "lists in lists": (lambda: b"[" * 100_000, "nested too deeply"),
    "a key twice": (lambda: b'{"version": "1.0", "version": "1.0"}', "'version' occurs twice"),
    "unknown key": (lambda: changed(lambda data: data.update(more=1)), "'more' is 1"),
    "version": (lambda: changed(lambda data: data.update(version="2.0")), "version is"),
    "no version": (lambda: changed(lambda data: data.pop("version")), "version is missing"),
    "no normalizer": (lambda: changed(lambda data: data.update(normalizer=None)), "normalizer is null"),
    "other normalizer": (
        lambda: changed(lambda data: data.update(normalizer={"type": "NFC"})),
        r"normalizer.type is \"NFC\"",
    ),
    "NFKC": (lambda: normalizer(0, type="NFKC"), r"normalizers\[0\].type is \"NFKC\""),
    "space": (lambda: normalizer(1, content="_"), r"normalizers\[1\].content is \"_\""),
    "space's pattern": (lambda: normalizer(1, pattern={"String": " "}), r"normalizers\[1\].pattern is"),
    "lower case": (lambda: normalizer(2, type="Strip"), r"normalizers\[2\].type"),
    "more of a normalizer": (lambda: normalizer(2, more=1), r"normalizers\[2\].'more'"),
    "no pre-tokenizer": (lambda: changed(lambda data: data.pop("pre_tokenizer")), "pre_tokenizer is missing"),
    "pattern": (lambda: pre_tokenizer(0, pattern={"Regex": "."}), r"pretokenizers\[0\].pattern is"),
    "behavior": (lambda: pre_tokenizer(0, behavior="Isolated"), r"behavior is \"Isolated\""),
    "invert": (lambda: pre_tokenizer(0, invert=False), "invert is false"),
    "prefix": (lambda: pre_tokenizer(1, add_prefix_space=True), "add_prefix_space is true"),
    "no pattern": (lambda: pre_tokenizer(1, use_regex=False), "use_regex is false"),
    "post-processor": (
        lambda: changed(lambda data: data.update(post_processor={"type": "Sequence"})),
        "post_processor.type",
    ),
    "trims": (lambda: changed(lambda data: data["post_processor"].update(trim_offsets=True)), "trim_offsets is true"),
    "no model": (lambda: changed(lambda data: data.pop("model")), "model is missing"),
    "model's type": (lambda: small(type="WordPiece"), r"model.type is \"WordPiece\""),
    "dropout": (lambda: small(dropout=0.1), "model.dropout is 0.1"),
    "no unk": (lambda: small(unk_token=None), "model.unk_token is null"),
    "unknown unk": (lambda: small(unk_token="zz"), "model.unk_token is 'zz', which is not in its vocabulary"),
    "continuing prefix": (lambda: small(continuing_subword_prefix="##"), "continuing_subword_prefix is"),
    "suffix": (lambda: small(end_of_word_suffix=""), "end_of_word_suffix is"),
    "no suffix": (lambda: small(end_of_word_suffix=None), "end_of_word_suffix is null"),
    "fuse_unk": (lambda: small(fuse_unk=True), "model.fuse_unk is true"),
    "byte_fallback": (lambda: small(byte_fallback=True), "model.byte_fallback is true"),
    "ignore_merges": (lambda: small(ignore_merges=True), "model.ignore_merges is true"),
    "more of a model": (lambda: small(more=None), "model.'more'"),
    "vocab as a list": (lambda: small(vocab=["a"]), "the id of ''"),
    "vocab with lists": (lambda: small(vocab={"a": [1]}), "the id of 'a' is"),
    "vocab with objects": (lambda: small(vocab={"a": {"b": 1}}), "the id of 'a' is"),
    "vocab with texts": (lambda: small(vocab={"a": "1"}), "the id of 'a' is \"1\""),
    "negative id": (lambda: small(vocab={"a": -1}), "the id of 'a' is -1"),
    "fraction": (lambda: small(vocab={"a": 1.0}), "the id of 'a' is 1.0"),
    "huge id": (lambda: small(vocab={"a": 2**32}), "the id of 'a' is 4294967296"),
    "huger id": (lambda: small(vocab={"a": 10**30}), "the id of 'a' is 1e"),
    "an id twice": (lambda: small(vocab={"a": 0, "b": 0}), "two tokens have the id 0"),
    "a token twice": (lambda: small().replace(b'"ab": 2', b'"a": 2'), "the token 'a' occurs twice"),
    "merges as an object": (lambda: small(merges={"a": "b"}), "model.merges"),
    "merge of an unknown token": (lambda: small(merges=[["a", "zz"]]), "model.merges names 'zz'"),
    "merge to an unknown token": (lambda: small(merges=[["b", "a"]]), "model.merges makes 'ba'"),
    "merge of one": (lambda: small(merges=[["a"]]), "model.merges holds"),
    "merge of three": (lambda: small(merges=["a b c"]), "model.merges holds 'a b c'"),
    "merge without a space": (lambda: small(merges=["ab"]), "model.merges holds 'ab'"),
    "merge of numbers": (lambda: small(merges=[[1, 2]]), "model.merges holds"),
    "merge of null": (lambda: small(merges=[None]), "model.merges holds null"),
    "added tokens as an object": (lambda: changed(lambda data: data.update(added_tokens={})), "added_tokens is"),
    "added number": (lambda: changed(lambda data: data.update(added_tokens=[7])), "added_tokens is 7"),
    "empty word": (lambda: added({"content": ""}), "has 0 bytes"),
    "long word": (lambda: added({"content": "a" * 1001}), "has 1001 bytes"),
    "single_word": (lambda: added({"single_word": True}), "single_word is true"),
    "lstrip": (lambda: added({"lstrip": True}), "lstrip is true"),
    "rstrip": (lambda: added({"rstrip": True}), "rstrip is true"),
    "normalized": (lambda: added({"normalized": None}), "normalized is null"),
    "special": (lambda: added({"special": 1}), "special is 1"),
    "word that is a number": (lambda: added({"content": 1}), "content is 1"),
    "other number": (lambda: added({"id": 49409}), "the id of '<0>' is 49409: expected 49408"),
    "number of another word": (lambda: added({}, {"id": 49408}), "the id of '<1>' is 49408: expected 49409"),
    "other number of a token": (lambda: added({"content": "a</w>"}), "the id of 'a</w>' is 49408: expected 320"),
    "words in two cases": (lambda: added({}, {"content": "<X>"}, {"content": "<x>"}), "two of them are '<x>'"),
    "word twice": (lambda: added({}, {"content": "<0>"}), "'<0>' occurs twice"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    make, match = REFUSED[name]
    with pytest.raises(NativeError, match=match) as caught:
        NativeTokenizer(make(), FACTS)
    assert caught.value.status == BUNDLE
    assert str(caught.value).startswith("tokenizer/tokenizer.json cannot be read as a tokenizer: ")


def test_lengths_are_checked() -> None:
    for length in (2, 0, -5, 2**40):
        with pytest.raises(NativeError, match="max_length is") as caught:
            NativeTokenizer(CLIP.read_bytes(), FACTS | {"max_length": length})
        assert caught.value.status == BUNDLE


def test_a_small_vocabulary(tmp_path: Path) -> None:
    """Bytes that it lacks are unknown; a merge that occurs twice has the rank of the last one."""
    names = [*"abcde", "ab", "bc", "abc", "cd</w>", *(f"{c}</w>" for c in "abcd")]
    vocab = {name: i for i, name in enumerate(names)} | {"<|startoftext|>": 49406, "<|endoftext|>": 49407}
    rng = random.Random(6)
    texts = ["".join(rng.choices("abcdef é", k=rng.randint(0, 12))) for _ in range(500)]
    orders = [
        [["a", "b"], ["b", "c"], ["ab", "c"], ["c", "d</w>"], ["a", "bc"]],
        [["c", "d</w>"], ["b", "c"], ["a", "b"]],
    ]
    for merges in [*orders, [*orders[0], ["a", "b"]], []]:
        (tmp_path / "tokenizer.json").write_bytes(with_model(content(), vocab=vocab, merges=merges))
        # Numbers of added tokens count from the vocabulary's size.
        assert not Pair.of(tmp_path / "tokenizer.json").different(texts)


def test_every_beginning_of_a_file_is_refused() -> None:
    data = small()
    for end in range(0, len(data), 7):
        with pytest.raises(NativeError) as caught:
            NativeTokenizer(data[:end], FACTS)
        assert caught.value.status == BUNDLE
