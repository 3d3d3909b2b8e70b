"""Ids against transformers' tokenizer, on texts with everything in them."""

import random

import numpy as np
import pytest
from exports import Exported

from latentrt.runtime import Pipeline

KNOWN = [49406, 320, 1125, 539, 550, 18376, 6765, 320, 4558, 525, 7496, 49407]


def test_known_ids(pipe: Pipeline) -> None:
    ids = pipe.tokenizer.encode(["a photo of an astronaut riding a horse on mars"]).ids[0]
    assert ids[: len(KNOWN)].tolist() == KNOWN
    assert set(ids[len(KNOWN) :].tolist()) == {49407}


def texts(count: int) -> list[str]:
    """Random mixtures of words, digits, punctuation, whitespace, accents, other scripts and emoji."""
    random.seed(20)
    pieces = [
        "Cat",
        "don't",
        "you've",
        "1234",
        "3.5",
        "\t",
        "\n",
        "  ",
        "!!!",
        "é",
        "e\u0301",
        "naïve",
        "日本語",
        "Ω",
        "ß",
    ]
    pieces += ["🎨", "👩‍🚀", "\u200b", "a_b", "--", "(word:1.2)", "<|endoftext|>", "x" * 40, "\u00a0", "ﬁ", "İ"]
    return [" ".join(random.choices(pieces, k=random.randint(0, 60))) for _ in range(count)]


@pytest.mark.parametrize("name", ["sd1-fp32", "sd2-fp16"])
def test_ids_are_those_of_transformers(exported: object, name: str) -> None:
    from transformers import CLIPTokenizer

    case: Exported = exported(name)  # type: ignore[operator]
    reference = CLIPTokenizer.from_pretrained(case.checkpoint / "tokenizer")
    prompts = ["", " ", *texts(500)]
    expected = reference(prompts, padding="max_length", max_length=77, truncation=True).input_ids
    with Pipeline.load(case.bundle, device="cpu") as pipe:
        got = pipe.tokenizer.encode(prompts).ids
    wrong = np.flatnonzero((got != np.array(expected)).any(axis=1))
    assert not wrong.size, [prompts[i] for i in wrong[:3]]
