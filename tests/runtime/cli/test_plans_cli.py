"""`latentrt plans`: into a bundle or a file, whole or not at all; bundles of the first format stay readable."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.exports import ROOT, SHAPES
from support.plan_packs import ReadPack, differing

from latentrt.runtime import Pipeline
from latentrt.runtime.bundle import Bundle, plan_files
from latentrt.runtime.cli.main import main
from latentrt.runtime.errors import BundleError
from latentrt.runtime.files import written_whole
from latentrt.runtime.scheduler import Plan, resolve

FIRST = ROOT / "tests" / "data" / "bundle-1" / "bundle.json"


def linked(folder: Path, manifest: Path) -> Path:
    """The embedded bundle, as links, with another manifest."""
    shutil.copytree(SHAPES.bundle, folder, copy_function=os.symlink)
    for name in ("bundle.json", *Bundle.open(SHAPES.bundle).manifest.plans):
        (folder / name).unlink()
    shutil.copyfile(manifest, folder / "bundle.json")
    return folder


@pytest.fixture
def first(tmp_path: Path) -> Path:
    """A bundle of the first format."""
    return linked(tmp_path / "first", FIRST)


def test_bundles_of_the_first_format_draw(first: Path) -> None:
    assert '"latentrt.bundle/1"' in FIRST.read_text()
    options: dict[str, Any] = {"num_inference_steps": 2, "seed": 8, "height": 64, "width": 64}
    pictures = []
    for bundle in (first, SHAPES.bundle):
        with Pipeline.load(bundle, device="cpu") as pipe:
            pictures.append(np.asarray(pipe("a large red star", **options).images[0]))
    np.testing.assert_array_equal(pictures[0], pictures[1])
    assert main(["info", str(first)]) == 0


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda m: m.update(plans=[]), "has the key 'plans', which the format 'latentrt.bundle/1' has not"),
        (lambda m: m.update(plans=["x"], format="latentrt.bundle/2"), r"plans\[0\] is 'x', which files does not list"),
        (lambda m: m.update(plans="x", format="latentrt.bundle/2"), "plans: expected list"),
        (lambda m: m.update(plans=[1], format="latentrt.bundle/2"), r"plans\[0\]: expected str"),
        (lambda m: m.update(plans=["time.onnx"] * 2, format="latentrt.bundle/2"), "lists a file twice"),
        (lambda m: m.update(plan=[], format="latentrt.bundle/2"), "unknown key 'plan'"),
    ],
)
def test_manifests_with_plans(change: Callable[[dict[str, Any]], object], text: str, first: Path) -> None:
    manifest = json.loads(FIRST.read_text())
    change(manifest)
    (first / "bundle.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=text):
        Bundle.open(first)
    manifest = json.loads(FIRST.read_text())
    (first / "bundle.json").write_text(json.dumps(manifest | {"format": "latentrt.bundle/2"}))
    assert Bundle.open(first).manifest.plans == ()  # the second format without its keys is fine


def test_plans_go_into_the_bundle(first: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = Bundle.open(first).manifest
    assert main(["plans", str(first), "--scheduler", "euler_a", "--steps", "3,5-6"]) == 0
    bundle = Bundle.open(first)
    (name,) = bundle.manifest.plans
    assert capsys.readouterr().out == f"{first / name}: 17 plans, 0.00 MiB: euler_a\n"
    assert bundle.manifest.format == "latentrt.bundle/2"
    assert bundle.altered_files() == []
    assert {n: f.sha256 for n, f in bundle.manifest.files.items() if n != name} == {
        n: f.sha256 for n, f in before.files.items()
    }
    pack = ReadPack(bundle.file(name).read_bytes())
    assert pack.index["schedulers"][0]["steps"] == [3, 5, 6]
    plan, config = pack.plan(0), bundle.read_json(bundle.manifest.scheduler)
    assert plan is not None
    assert differing(plan, Plan.from_config(resolve("euler_a", config), 3)) == []

    # Once more changes nothing; other plans are added; --replace leaves the newest alone.
    text = (first / "bundle.json").read_text()
    assert main(["plans", str(first), "--scheduler", "euler_a", "--steps", "3,5-6"]) == 0
    assert (first / "bundle.json").read_text() == text
    assert main(["plans", str(first), "--scheduler", "", "--scheduler", "heun", "--steps", "4", "--from-noise"]) == 0
    more = Bundle.open(first).manifest
    assert more.plans[0] == name
    assert ReadPack((first / more.plans[1]).read_bytes()).index["schedulers"][1]["starts"] == [0]
    assert main(["plans", str(first), "--scheduler", "lms", "--steps", "2", "--replace"]) == 0
    (left,) = Bundle.open(first).manifest.plans
    assert [f"plans/{file.name}" for file in (first / "plans").iterdir()] == [left]
    assert "the checkpoint's own, heun" in capsys.readouterr().out


def test_plans_go_into_a_file(first: Path, tmp_path: Path) -> None:
    """A bundle that nobody may write to stays as it is; without --scheduler, the file has ten."""
    text = (first / "bundle.json").read_text()
    out = tmp_path / "new" / "some.plans"
    assert main(["plans", str(first), "--steps", "2", "--out", str(out)]) == 0
    assert len(ReadPack(out.read_bytes()).index["schedulers"]) == 10
    assert (first / "bundle.json").read_text() == text
    assert not any((first / "plans").iterdir())


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--scheduler", "eular"], "unknown scheduler 'eular'; did you mean 'euler'"),
        (["--scheduler", "lcm", "--steps", "60"], "num_inference_steps=60 with original_inference_steps=50"),
        (["--scheduler", "ddim:prediction_type=epsilon"], "the model predicts 'v_prediction'"),
        (["--out", "/proc/x.plans"], "cannot be written in the folder /proc"),
    ],
)
def test_what_cannot_be_written_is_told(
    words: list[str], text: str, first: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(first.rglob("*"))
    assert main(["plans", str(first), *words]) == 1
    error = capsys.readouterr().err
    assert text in error
    assert error.startswith("latentrt: ")
    assert sorted(first.rglob("*")) == before


@pytest.mark.parametrize("steps", ["0", "1-", "5-3", "1001", "a", "", "1,,2", "-3", "1-2-3", "1.5", "\u0665"])
def test_steps_that_are_none(steps: str, first: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        main(["plans", str(first), f"--steps={steps}"])
    assert error.value.code == 2
    assert "argument --steps" in capsys.readouterr().err


def test_an_interrupted_write_leaves_the_old_bundle(first: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At each of the two files; what is left of the pack is removed by the next one."""
    assert main(["plans", str(first), "--scheduler", "euler", "--steps", "2"]) == 0
    text = (first / "bundle.json").read_text()
    whole, calls = written_whole, [0]

    def interrupted(file: Path) -> Any:
        if file.name == ("bundle.json" if calls[0] else file.name):
            raise KeyboardInterrupt
        return whole(file)

    monkeypatch.setattr(plan_files, "written_whole", interrupted)
    for calls[0] in (0, 1):
        assert main(["plans", str(first), "--scheduler", "heun", "--steps", "2", "--replace"]) == 130
        assert (first / "bundle.json").read_text() == text
        Bundle.open(first)
    assert len(list((first / "plans").iterdir())) == 2
    monkeypatch.undo()
    assert main(["plans", str(first), "--scheduler", "ddim", "--steps", "3"]) == 0
    assert {f"plans/{file.name}" for file in (first / "plans").iterdir()} == set(Bundle.open(first).manifest.plans)


def test_engines_keep_the_format(first: Path) -> None:
    assert main(["build", str(first), "--backend", "onnxruntime", "--graph", "blend"]) in (0, 1)
    assert Bundle.open(first).manifest.format == "latentrt.bundle/1"
