"""The tables of characters in native/src are those of the libraries that are installed."""

import importlib.util
import unicodedata
from functools import cache
from types import ModuleType

import pytest
from support.exports import ROOT
from tokenizers import normalizers


@cache
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("unicode_tables", ROOT / "native" / "tools" / "unicode_tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["python_tables.cpp", pytest.param("unicode_tables.cpp", marks=pytest.mark.slow)])
def test_tables_are_as_written(name: str) -> None:
    ((path, content),) = ((path, content) for path, content in script().FILES.items() if path.name == name)
    assert path.read_text(encoding="utf-8") == content(), "run python native/tools/unicode_tables.py"


@pytest.mark.slow
def test_combining_classes_are_those_of_unicode_or_none() -> None:
    """Where the library knows fewer characters than Python, they have no class; it knows no other ones."""
    decomposed = script().changes(normalizers.NFD())
    found = {chr(c): k for first, last, k in script().combining_classes(decomposed) for c in range(first, last + 1)}
    expected = {c: unicodedata.combining(c) for c in script().POINTS if c not in decomposed}
    assert all(expected[c] == k for c, k in found.items())
    assert (found["\u0301"], found["\u0323"], found["\u05bc"], found["\u0345"]) == (230, 220, 21, 240)
    missing = [c for c, k in expected.items() if k and c not in found]
    assert not set(missing) & set(map(chr, range(0x7C0))), "those are as old as Unicode"


@pytest.mark.slow
def test_no_other_pairs_are_composed() -> None:
    """All letters and signs that are not composed themselves, with all that may come second."""
    decomposed = script().changes(normalizers.NFD())
    pairs = {(first, second) for first, second, _ in script().compositions(decomposed)}
    firsts = [c for c in script().POINTS if c not in decomposed and unicodedata.category(c)[0] not in "CZ"]
    firsts = [c for c in firsts if not unicodedata.name(c, "").startswith("CJK UNIFIED IDEOGRAPH")]
    for second in sorted({second for _, second in pairs}):
        composed = script().normalized(normalizers.NFC(), [first + second for first in firsts])
        found = {first for first, got in zip(firsts, composed, strict=True) if len(got) == 1}
        assert found == {first for first, other in pairs if other == second and first not in decomposed}
    assert len(pairs) > 900
