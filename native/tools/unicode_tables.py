"""Write the tables of characters in native/src: those of CLIP's tokenizer, and those of Python's texts.

CLIP's are asked of the library `tokenizers`, for every code point: its parts (Oniguruma, Rust's `char`, a crate for
normal forms) follow different versions of Unicode, none of which is Python's. Python's are asked of Python.

    python native/tools/unicode_tables.py
"""

import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import tokenizers
from tokenizers import Regex, normalizers, pre_tokenizers

SOURCES = Path(__file__).resolve().parents[1] / "src"
POINTS = [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000]
_SEPARATOR = "\n"  # no normal form and no lower case changes it, or joins it with its neighbours
_HANGUL = range(0xAC00, 0xD7A4)
_WIDTH = 120

Ranges = list[tuple[int, int]]


def normalized(normalizer: normalizers.Normalizer, texts: Iterable[str]) -> list[str]:
    """Normalize many texts in one call."""
    return normalizer.normalize_str(_SEPARATOR.join(texts)).split(_SEPARATOR)


def changes(normalizer: normalizers.Normalizer) -> dict[str, str]:
    """Character -> what becomes of it, where that is something else."""
    asked = [c for c in POINTS if c != _SEPARATOR]
    return {c: new for c, new in zip(asked, normalized(normalizer, asked), strict=True) if new != c}


def matched(pattern: str) -> Ranges:
    """Ranges of the characters that a class of the pre-tokenizer's pattern matches."""
    split = pre_tokenizers.Split(Regex(f"{pattern}+"), "removed", invert=True)
    return [(ord(piece[0]), ord(piece[-1])) for piece, _ in split.pre_tokenize_str("".join(POINTS))]


def ranges(characters: Iterable[str]) -> Ranges:
    """Ranges of sorted characters."""
    found: Ranges = []
    for code in map(ord, characters):
        if found and code == found[-1][1] + 1:
            found[-1] = (found[-1][0], code)
        else:
            found.append((code, code))
    return found


def lower_cases(lower: dict[str, str]) -> list[tuple[int, int, int, int]]:
    """First and last, their distance from one to the next, and what is added to each."""
    found: list[tuple[int, int, int, int]] = []
    for old, new in lower.items():
        if len(new) > 1:
            continue
        code, delta = ord(old), ord(new) - ord(old)
        first, last, step, added = found[-1] if found else (0, 0, 0, 0)
        if found and added == delta and code - last <= 2 and (first == last or step == code - last):
            found[-1] = (first, code, code - last, delta)
        else:
            found.append((code, code, 1, delta))
    return found


def compositions(decomposed: dict[str, str]) -> list[tuple[str, str, str]]:
    """Pairs of characters and what NFC makes of them, sorted; those of Hangul are computed."""
    nfc = normalizers.NFC()
    long = [c for c, parts in decomposed.items() if len(parts) > 1 and ord(c) not in _HANGUL]
    starts = normalized(nfc, [decomposed[c][:-1] for c in long])
    pairs = [(start, decomposed[c][-1]) for c, start in zip(long, starts, strict=True)]
    composed = normalized(nfc, [start + last for start, last in pairs])
    found = [(*pair, c) for pair, c, got in zip(pairs, long, composed, strict=True) if got == c]
    if any(len(start) > 1 for start, _, _ in found):
        raise ValueError("a character is composed of more than two")
    return sorted(found)


def combining_classes(decomposed: dict[str, str]) -> list[tuple[int, int, int]]:
    """Ranges of characters with a combining class, found by how NFD sorts them beside characters of known class."""
    nfd = normalizers.NFD()
    # What is sorted behind the least class or before the greatest one has a class.
    least, greatest = "\u0334", "\u0345"
    asked = [c for c in POINTS if c != _SEPARATOR and c not in decomposed]
    behind = normalized(nfd, [c + least for c in asked])
    before = normalized(nfd, [greatest + c for c in asked])
    marks = [c for c, a, b in zip(asked, behind, before, strict=True) if a != c + least or b != greatest + c]
    known: dict[int, str] = {}
    for c in marks:
        known.setdefault(unicodedata.combining(c), c)
    classes: dict[str, int] = {}
    for c in marks:
        sorted_ = normalized(nfd, [text for k in known.values() for text in (c + k, k + c)])
        pairs = zip(known.items(), sorted_[::2], sorted_[1::2], strict=True)
        same = [number for (number, k), one, two in pairs if one == c + k and two == k + c]
        if len(same) != 1:
            raise ValueError(f"U+{ord(c):04X} has a combining class that this Python does not know")
        classes[c] = same[0]
    found: list[tuple[int, int, int]] = []
    for c in marks:
        if found and found[-1][1:] == (ord(c) - 1, classes[c]):
            found[-1] = (found[-1][0], ord(c), classes[c])
        else:
            found.append((ord(c), ord(c), classes[c]))
    return found


def text_tables() -> str:
    """The content of text/unicode_tables.cpp."""
    lower, decomposed = changes(normalizers.Lowercase()), changes(normalizers.NFD())
    if {c: new for c, new in lower.items() if len(new) > 1} != {"\u0130": "i\u0307"}:
        raise ValueError("other characters than U+0130 have a lower case of several: text/normal_form.cpp knows one")
    spaces = matched(r"\s")
    others = set(normalizers.Replace(Regex(r"\s"), "").normalize_str("".join(POINTS)))
    if spaces != ranges(c for c in POINTS if c not in others):
        raise ValueError("the normalizer and the pre-tokenizer take different characters for spaces")
    pool, rows = "", []
    for c, parts in decomposed.items():
        if ord(c) not in _HANGUL:
            rows.append((ord(c), len(pool), len(parts)))
            pool += parts
    tables = [
        _table("Range", "LETTERS", map(_hex, matched(r"\p{L}"))),
        _table("Range", "NUMBERS", map(_hex, matched(r"\p{N}"))),
        _table("Range", "SPACES", map(_hex, spaces)),
        _table("LowerCase", "LOWER_CASES", (f"{{0x{a:x}, 0x{b:x}, {s}, {d}}}" for a, b, s, d in lower_cases(lower))),
        _table(
            "CombiningClass",
            "COMBINING_CLASSES",
            (f"{{0x{a:x}, 0x{b:x}, {k}}}" for a, b, k in combining_classes(decomposed)),
        ),
        _table("Decomposition", "DECOMPOSITIONS", (f"{{0x{c:x}, {at}, {count}}}" for c, at, count in rows)),
        _table("char32_t", "DECOMPOSED", (f"0x{ord(c):x}" for c in pool)),
        _table("Composition", "COMPOSITIONS", (_hex(map(ord, row)) for row in compositions(decomposed))),
    ]
    return _source("unicode_tables.hpp", f"What tokenizers {tokenizers.__version__} does with characters.", tables)


def python_tables() -> str:
    """The content of base/python_tables.cpp."""
    tests: dict[str, Callable[[str], bool]] = {
        "PYTHON_SPACES": str.isspace,
        "PYTHON_WORDS": lambda c: c.isalnum() or c == "_",
        "PYTHON_PRINTABLE": str.isprintable,
    }
    tables = [_table("Range", name, map(_hex, ranges(filter(test, POINTS)))) for name, test in tests.items()]
    about = f"What Python takes characters for, with Unicode {unicodedata.unidata_version}."
    return _source("python_tables.hpp", about, tables)


FILES = {SOURCES / "text" / "unicode_tables.cpp": text_tables, SOURCES / "base" / "python_tables.cpp": python_tables}


def _hex(codes: Iterable[int]) -> str:
    return f"{{{', '.join(f'0x{code:x}' for code in codes)}}}"


def _table(kind: str, name: str, items: Iterable[str]) -> tuple[str, str]:
    lines = "\n".join(_lines(items))
    return f"constexpr {kind} {name}_ROWS[] = {{\n{lines}\n}};\n", f"const Table<{kind}> {name}{{{name}_ROWS}};"


def _lines(items: Iterable[str]) -> Iterator[str]:
    line = "   "
    for item in items:
        if len(line) + len(item) + 2 > _WIDTH:
            yield line
            line = "   "
        line += f" {item},"
    yield line


def _source(header: str, about: str, tables: list[tuple[str, str]]) -> str:
    return "\n".join(
        [
            f"// {about} Written by native/tools/unicode_tables.py.",
            f'#include "{header}"\n\nnamespace lrt {{\n\nnamespace {{\n',
            *(rows for rows, _ in tables),
            "}  // namespace\n",
            *(name for _, name in tables),
            "\n}  // namespace lrt\n",
        ]
    )


if __name__ == "__main__":
    for path, content in FILES.items():
        path.write_text(content(), encoding="utf-8")
        sys.stdout.write(f"{path}\n")
