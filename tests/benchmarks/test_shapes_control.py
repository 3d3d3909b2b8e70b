"""The ControlNet of the model `shapes`: its edge maps, its judge, and what the shipped one draws."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from benchmarks.common.paths import RESULTS, SHAPES_CHECKPOINT, SHAPES_EDGES
from benchmarks.quality import shapes_control
from benchmarks.shapes import drawings
from latentrt.runtime.cli.main import main


def neighbours(mask: np.ndarray) -> np.ndarray:
    """The mask with every pixel beside it."""
    padded = np.pad(mask, 1)
    return np.any([padded[y : y + 128, x : x + 128] for y in range(3) for x in range(3)], axis=0)


def test_edge_maps_follow_the_outlines_of_the_drawing() -> None:
    rng = np.random.default_rng(77)
    for scene in islice(drawings.training_scenes(rng, two_objects=0.5), 40):  # lines reach 2 pixels past tips
        things = drawings.placed(scene, rng)
        picture = drawings.render([things], [scene.background])[0].astype(int)
        lines = drawings.outlines(things)
        assert set(np.unique(lines)) == {0, 255}
        differs = np.abs(picture - picture[0, 0]).sum(axis=-1) > 60
        border = neighbours(differs) & neighbours(~differs)
        assert not ((lines > 0) & ~neighbours(neighbours(border))).any(), scene
        assert not (border & ~neighbours(neighbours(lines > 0))).any(), scene


def test_prompts_do_not_name_what_is_drawn() -> None:
    caption = "a small heart left of an orange star on a black background"
    assert drawings.without_shapes(caption) == "a small left of an orange on a black background"


def test_overlap_is_that_of_areas() -> None:
    square = drawings.Placed("square", "red", 64, 64, 25 / 0.84)  # a side of 50
    picture = drawings.render([[square]], ["white"])[0]
    assert shapes_control.overlap(picture, [square], "white") == 1
    moved = drawings.Placed("square", "red", 74, 64, 25 / 0.84)
    assert shapes_control.overlap(picture, [moved], "white") == pytest.approx(40 / 60, abs=1e-3)
    assert shapes_control.overlap(drawings.render([[]], ["white"])[0], [square], "white") == 0


def test_a_caption_without_shapes_may_leave_open_which_outline_has_which_colour() -> None:
    square = drawings.Placed("square", "red", 32, 60, 19)
    heart = drawings.Placed("heart", "blue", 96, 66, 28)
    swapped = [replace(square, colour="blue"), replace(heart, colour="red")]
    picture, other = drawings.render([[square, heart], swapped], ["white", "white"])

    def verdicts(caption: str) -> tuple[bool, bool]:
        scene = drawings.scene_from_caption(caption)
        return tuple(shapes_control.right(one, [square, heart], scene) for one in (picture, other))

    assert verdicts("a red square and a blue heart on a white background") == (True, True)
    assert verdicts("a red square left of a blue heart on a white background") == (True, False)
    assert verdicts("a small red square and a blue heart on a white background") == (True, False)
    assert verdicts("a red square and a large blue heart on a white background") == (True, False)
    assert verdicts("a red square and a green heart on a white background") == (False, False)
    assert verdicts("a red square and a blue heart on a yellow background") == (False, False)


def test_shapes_are_those_of_the_edge_map_where_it_has_them() -> None:
    square = drawings.Placed("square", "red", 32, 60, 19)
    heart = drawings.Placed("heart", "blue", 96, 66, 28)
    scene = drawings.scene_from_caption("a red square and a blue heart on a white background")
    for wrong in ([replace(square, shape="circle"), heart], [heart], [replace(square, x=96), replace(heart, x=32)]):
        assert not shapes_control.right(drawings.render([wrong], ["white"])[0], [square, heart], scene)


@pytest.mark.slow
def test_what_ships_draws_along_the_edges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, control = tmp_path / "shapes", tmp_path / "edges"
    same = ["--precision", "fp32"]
    command = ["export", str(SHAPES_CHECKPOINT), str(bundle), "--ports", "control", "--no-plans", *same]
    assert main([*command, "--steps", "20", "--guidance-scale", "2"]) == 0
    assert main(["export-control", str(SHAPES_EDGES), str(control), *same]) == 0
    options = ["--bundle", bundle, "--control", control, "--count", 30, "--seed", 77]
    options += ["--out", tmp_path, "--sheet", tmp_path / "sheet.png"]
    monkeypatch.setattr("sys.argv", ["shapes_control", *map(str, options)])
    shapes_control.main()
    figures = json.loads((tmp_path / "shapes-control.json").read_text())
    assert figures["with"]["right"] >= 0.9, figures
    assert figures["other"]["right"] <= 0.4, figures
    assert figures["with"]["overlap"] > figures["other"]["overlap"] + 0.2


def test_the_figures_are_those_that_were_asked_for() -> None:
    figures = json.loads((RESULTS / "shapes-control.json").read_text())
    assert figures["n"] == 100
    assert figures["with"]["right"] >= shapes_control.WANTED["with"]
    assert figures["other"]["right"] <= shapes_control.WANTED["other"]
