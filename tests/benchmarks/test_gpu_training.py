"""The part `training` of the GPU check, on the CPU."""

import shutil
from pathlib import Path

import pytest
import torch

from benchmarks.common.paths import SHAPES_CHECKPOINT
from benchmarks.gpu import training
from benchmarks.gpu.places import Place
from benchmarks.gpu.report import Report
from benchmarks.shapes.train_unet import on_cpu


def run(folder: Path, **options: float) -> Report:
    report = Report(folder / "out" / "reports" / "training.json")
    training.run(Place(folder / "work", device="cpu"), report, batch=2, pool=40, **options)  # type: ignore[arg-type]
    return report


@pytest.mark.slow
def test_it_continues_elsewhere_with_what_was_brought_back(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    report = run(first, steps=2)
    assert [check["passed"] for check in report.checks] == [True]
    assert report.figures["training"]["step"] == 2
    brought = first / "out" / "training"
    state = torch.load(brought / "shapes-unet.pt")
    assert state["step"] == 2
    assert not {"latents", "captions"} & state.keys()
    shutil.copytree(brought, second / "work" / "training")
    report = run(second, steps=3)
    assert report.figures["training"]["step"] == 3
    assert torch.load(second / "out" / "training" / "shapes-unet.pt")["step"] == 3
    weights = "unet/diffusion_pytorch_model.safetensors"
    files = [SHAPES_CHECKPOINT / weights, *(f / "out" / "training" / "shapes" / weights for f in (first, second))]
    assert len({file.read_bytes() for file in files}) == 3


def test_an_interrupted_training_is_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []

    def trained(folder: Path, words: list[str], *_: object) -> bool:
        calls.append(words)
        torch.save({"step": 7, "running": 0.5, "spent": 2.0, "latents": torch.zeros(3)}, folder / training.STATE)
        return words == ["--export"]

    monkeypatch.setattr(training, "trained", trained)
    report = run(tmp_path)
    assert [words[0] for words in calls] == ["--warm", "--export"]
    assert [check["passed"] for check in report.checks] == [True]
    assert torch.load(tmp_path / "out" / "training" / training.STATE) == {"step": 7, "running": 0.5, "spent": 2.0}
    assert report.figures["training"]["step"] == 7


def test_a_state_is_loaded_without_its_device() -> None:
    class Elsewhere(torch.Tensor):
        def cpu(self, *_: object, **__: object) -> torch.Tensor:
            return torch.ones(1)

    there = torch.zeros(1).as_subclass(Elsewhere)
    assert on_cpu({"state": {0: {"momentum": there}}, "lr": [0.5]}) == {
        "state": {0: {"momentum": torch.ones(1)}},
        "lr": [0.5],
    }
