"""The prompt syntax of web UIs: examples from its documentation, and properties of every text."""

import contextlib
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentrt.runtime import InputError
from latentrt.runtime.text.prompt import parse


def web_ui(prompt: str) -> list[list[tuple[str, float]]]:
    return [[(piece.text, round(piece.weight, 6)) for piece in section] for section in parse(prompt, "web-ui")]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("normal text", [("normal text", 1)]),
        ("an (important) word", [("an ", 1), ("important", 1.1), (" word", 1)]),
        ("((very)) [less] [[least]]", [("very", 1.21), (" ", 1), ("less", 0.909091), (" ", 1), ("least", 0.826446)]),
        ("a (house:1.4), (sky : .5 )", [("a ", 1), ("house", 1.4), (", ", 1), ("sky ", 0.5)]),
        ("(a (b:2) c:0.5)", [("a ", 0.5), ("b", 1), (" c", 0.5)]),
        ("(minus:-1) (zero:0)", [("minus", -1), (" ", 1), ("zero", 0)]),
        ("(one)(two)", [("onetwo", 1.1)]),
        # Escapes and unmatched brackets.
        (r"\(text\) \[as\] it (is\)) \\", [("(text) [as] it ", 1), ("is)", 1.1), (" \\", 1)]),
        (r"C:\dir", [(r"C:\dir", 1)]),
        ("to (the [end", [("to ", 1), ("the ", 1.1), ("end", 1)]),
        ("a) b] c:1.2) d", [("a) b] c:1.2) d", 1)]),
        ("[not a weight:1.2]", [("not a weight:1.2", 0.909091)]),
        ("(nor this:1.2.3) or (this:)", [("nor this:1.2.3", 1.1), (" or ", 1), ("this:", 1.1)]),
        # Round and square brackets are matched separately, so they may overlap.
        ("(a [b) c]", [("a ", 1.1), ("b", 1), (" c", 0.909091)]),
        ("()", []),
        ("", []),
    ],
)
def test_known_results(prompt: str, expected: list[tuple[str, float]]) -> None:
    assert web_ui(prompt) == [[(text, pytest.approx(weight, abs=1e-6)) for text, weight in expected]]


@pytest.mark.parametrize(
    ("prompt", "sections"),
    [
        ("a cat BREAK a dog", [["a cat"], ["a dog"]]),
        ("a\n  BREAK\t\nb", [["a"], ["b"]]),
        ("BREAK a", [[], ["a"]]),
        ("a BREAK BREAK b BREAK", [["a"], [], ["b"]]),
        ("BREAK", [[]]),
        ("BREAKFAST, break, aBREAK", [["BREAKFAST, break, aBREAK"]]),
    ],
)
def test_break_begins_a_section(prompt: str, sections: list[list[str]]) -> None:
    assert [[text for text, _ in section] for section in web_ui(prompt)] == sections


def test_break_keeps_the_weights_around_it() -> None:
    assert web_ui("(a BREAK b:1.5) c") == [[("a", 1.5)], [("b", 1.5), (" c", 1)]]


@given(st.text(st.sampled_from("ab (:1.2)[]\\BREAK\n☆")))
@settings(max_examples=200, deadline=None)
def test_no_text_is_lost(prompt: str) -> None:
    """Letters keep their order, whatever the brackets; plain prompts stay unchanged."""
    ((piece,),) = parse(prompt)
    assert (piece.text, piece.weight) == (prompt, 1)
    kept = "".join(text for section in web_ui(prompt) for text, _ in section)
    assert [c for c in kept if c in "ab☆"] == [c for c in prompt if c in "ab☆"]


@given(st.text(st.characters(exclude_categories=("Cs",))))
@settings(max_examples=100, deadline=None)
def test_escaped_text_is_itself(text: str) -> None:
    escaped = "".join(f"\\{c}" if c in "()[]\\" else c for c in text).replace("BREAK", "")
    ((*pieces,),) = parse(escaped, "web-ui")
    assert "".join(piece.text for piece in pieces) == text.replace("BREAK", "")
    assert all(piece.weight == 1 for piece in pieces)


def test_weights_beyond_measure_and_halves_of_characters_are_refused() -> None:
    with pytest.raises(InputError, match=r"weight of 1500: .* from -1000 to 1000"):
        parse("((a:50):30)", "web-ui")
    with pytest.raises(InputError, match=r"'plain'"):
        parse("(" * 5000 + "a", "web-ui")
    parse("((a:50):30)")
    with pytest.raises(InputError, match=r"half of a surrogate pair \('\\ud83c'\) at character 2"):
        parse("a \ud83c")


@pytest.mark.parametrize("piece", ["(a[", ": ", " ", "(:1", "\\", "BREAK ", "((a)", "1"])
def test_hostile_prompts_take_no_time(piece: str) -> None:
    start = time.process_time()
    with contextlib.suppress(InputError):  # too many brackets
        parse("(x:" + piece * 20_000, "web-ui")
    assert time.process_time() - start < 3


@pytest.mark.parametrize(
    ("prompt", "syntax", "told"),
    [
        ("a red star <lora:ink:0.8>", "web-ui", "<lora:ink:0.8>"),
        ("a red star <lora:ink:0.8>", "plain", "<lora:ink:0.8>"),
        ("a [red:blue:0.5] star", "web-ui", "[red:blue:0.5]"),
        ("a [(red:1.2)::8] star", "web-ui", "[(red:1.2)::8]"),
        ("a [cat|dog|fox]", "web-ui", "[cat|dog|fox]"),
        ("a red star AND a blue circle :1.2", "web-ui", "AND"),
    ],
)
def test_syntax_that_is_not_read_is_told(prompt: str, syntax: str, told: str, caplog: pytest.LogCaptureFixture) -> None:
    parse(prompt, syntax)
    (record,) = caplog.records
    assert record.name.startswith("latentrt.")
    assert f"here: {told} (" in record.getMessage()


@pytest.mark.parametrize("syntax", ["plain", "web-ui"])
@pytest.mark.parametrize(
    "prompt",
    [
        "a cat and a dog, black | white, 16:9, at 12:30",
        "a [cat] (dog:1.2) [a (b:1.3)] BREAK [[sand]] ANDROMEDA, a <3 b, <b>bold</b>",
        r"a \[red:blue:0.5\] and \[cat|dog\]",
        "[unclosed: 0.5, (a|b)",
    ],
)
def test_plain_prompts_are_not_warned_about(prompt: str, syntax: str, caplog: pytest.LogCaptureFixture) -> None:
    parse(prompt, syntax)
    assert not caplog.records


def test_other_syntax_is_text_without_the_syntax(caplog: pytest.LogCaptureFixture) -> None:
    parse("a [red:blue:0.5] star AND [cat|dog]", "plain")
    assert not caplog.records


@pytest.mark.parametrize("piece", ["[", "[:", "[a: 1", "[|", ":1", "<lora:", "1.", " "])
def test_looking_for_other_syntax_takes_no_time(piece: str) -> None:
    import time

    began = time.perf_counter()
    parse("[" + piece * 20_000, "web-ui")
    assert time.perf_counter() - began < 5
