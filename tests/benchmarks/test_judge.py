"""The judge accepts true drawings and rejects those of other prompts; otherwise its accuracies would mean nothing."""

from __future__ import annotations

import json
from itertools import islice

import numpy as np
import pytest

from benchmarks.common.paths import PROMPTS
from benchmarks.quality import judge
from benchmarks.shapes import drawings


def _drawn(prompts: list[str], seed: int) -> np.ndarray:
    return drawings.draw([drawings.scene_from_caption(prompt) for prompt in prompts], np.random.default_rng(seed))


@pytest.fixture(scope="module")
def prompts() -> list[str]:
    return json.loads(PROMPTS.read_text())["prompts"]


@pytest.mark.slow
def test_true_drawings_are_right(prompts: list[str]) -> None:
    result = judge.accuracies(lambda captions: _drawn(captions, 4711), prompts)
    assert (result["single/n"], result["double/n"]) == (200, 100)
    assert {key: share for key, share in result.items() if not key.endswith("/n") and share < 0.99} == {}


@pytest.mark.slow
def test_drawings_of_other_prompts_are_wrong(prompts: list[str]) -> None:
    shifted = prompts[1:200] + prompts[:1] + prompts[201:] + prompts[200:201]
    result = judge.accuracies(lambda _: _drawn(shifted, 4711), prompts)
    assert result["single/all"] <= 0.05
    assert result["double/all"] <= 0.05


def test_order_counts_only_where_the_prompt_says_so() -> None:
    def verdict(drawn: str, asked: str) -> bool:
        return judge.judge(_drawn([drawn], 1)[0], drawings.scene_from_caption(asked))["all"]

    left = "a red circle left of a blue star on a white background"
    right = "a blue star left of a red circle on a white background"
    both = "a blue star and a red circle on a white background"
    assert verdict(left, left)
    assert not verdict(left, right)
    assert verdict(left, both)
    assert verdict(right, both)


def test_a_picture_of_nothing_is_wrong() -> None:
    blank = np.full((128, 128, 3), drawings.PALETTE["white"], np.uint8)
    verdict = judge.judge(blank, drawings.scene_from_caption("a red circle on a white background"))
    assert verdict == {"shape": False, "colour": False, "size": False, "background": True, "all": False}


def test_held_out_prompts_are_the_committed_ones_and_never_trained_on(prompts: list[str]) -> None:
    assert prompts == drawings.held_out_prompts()
    scenes = islice(drawings.training_scenes(np.random.default_rng(3)), 2000)
    assert not {scene.caption() for scene in scenes} & set(prompts)


def test_captions_and_scenes_are_inverse() -> None:
    scenes = list(islice(drawings.training_scenes(np.random.default_rng(8)), 300))
    assert [drawings.scene_from_caption(scene.caption()) for scene in scenes] == scenes
