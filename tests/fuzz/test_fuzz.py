"""A slice of the fuzzing; `python -m tests.fuzz` runs more, and one case by its seed."""

import pytest

from tests.fuzz.workers import run


@pytest.mark.parametrize("kind", ["calls", "bundles"])
def test_a_slice_ends_in_pictures_and_errors_of_latentrt(kind: str) -> None:
    counts, failed = run(kind, seed=7, count=150, seconds=10)
    assert not failed
    assert counts["done"] >= 1 or kind == "bundles"
    assert sum(counts.values()) >= 5
