"""Graphs that are carried without weights: what is made of them is the export, to the byte."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.exports import ROOT, Exported

from benchmarks.common import make_checkpoint
from benchmarks.common.make_checkpoint import DTYPES
from benchmarks.gpu import carried, full_size
from benchmarks.gpu.carried import Tensor, archive_of, pack, rejoin, restore, tensors_in
from benchmarks.gpu.full_size_graphs import prepare
from benchmarks.gpu.places import Place
from benchmarks.gpu.report import Report
from latentrt.runtime import Bundle, Pipeline
from latentrt.runtime.goldens import verify_goldens
from latentrt.runtime.weights.stored import stored_weight


def content(folder: Path) -> dict[str, bytes]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


@pytest.fixture
def packed(
    request: pytest.FixtureRequest, exported: Callable[[str], Exported], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Exported, Path]:
    """An export, and its archive, with the checkpoint's own weights in place of draws, in the export's precision.

    An export rounds weights to its precision, also those that it then keeps in float32; draws are in float16.
    """
    given = exported(request.param)
    dtype = DTYPES[Bundle.open(given.bundle).manifest.recipe.precision]

    def weights(_: int, tensors: Sequence[Tensor]) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
        for file in dict.fromkeys(tensor.file for tensor in tensors):
            yield file, {name: weight.to(dtype) for name, weight in load_file(given.checkpoint / file).items()}

    monkeypatch.setattr(carried, "_drawn", weights)
    archive = archive_of(tmp_path / "graphs")
    pack(given.checkpoint, given.bundle, archive, seed=0, tensors=tensors_in(given.checkpoint))
    return given, archive


@pytest.mark.parametrize(
    "packed",
    [
        *("sd1-fp32", "sdxl-fp32"),
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("sd2-fp16", "sd1-bf16", "sd1-inpaint-fp32")),
    ],
    indirect=True,
)
def test_every_weight_finds_its_place(packed: tuple[Exported, Path], tmp_path: Path) -> None:
    """Transposed, rounded, kept in float32, and constants that no parameter has."""
    given, archive = packed
    checkpoint, bundle = tmp_path / "checkpoint", tmp_path / "bundle"
    for folder in (checkpoint, bundle):
        (folder / "old").mkdir(parents=True)  # is replaced
    assert restore(archive, checkpoint, bundle)
    assert content(bundle) == content(given.bundle)
    assert content(checkpoint).keys() == content(given.checkpoint).keys()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["bundle", "checkpoint", "graphs"]
    assert rejoin(archive, checkpoint, tmp_path / "rejoined")
    assert content(tmp_path / "rejoined") == content(bundle)
    again = archive.with_name("again.tar.xz")
    pack(given.checkpoint, given.bundle, again, seed=0, tensors=tensors_in(given.checkpoint))
    assert again.read_bytes() == archive.read_bytes()


@pytest.mark.parametrize("packed", ["sd1-fp32"], indirect=True)
def test_other_draws_make_another_whole_bundle(
    packed: tuple[Exported, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with another PyTorch: the manifest has the new hashes, and checkpoint and bundle have the same weights."""
    given, archive = packed
    drawn = carried._drawn
    other = lambda *a: ((file, {n: 2 * w for n, w in weights.items()}) for file, weights in drawn(*a))  # noqa: E731
    monkeypatch.setattr(carried, "_drawn", other)
    assert not restore(archive, tmp_path / "checkpoint", tmp_path / "bundle")
    bundle = Bundle.open(tmp_path / "bundle")
    assert bundle.altered_files() == []
    before = Bundle.open(given.bundle).manifest.files
    altered = {name for name, entry in bundle.manifest.files.items() if entry.sha256 != before[name].sha256}
    assert {"denoise.onnx.data", "vae_decoder.onnx.data"} <= altered
    assert not {name for name in altered if not name.endswith(".onnx.data")}
    (use,) = bundle.manifest.weights["unet.conv_in.weight"]
    weight = load_file(tmp_path / "checkpoint" / "unet" / "diffusion_pytorch_model.safetensors")["conv_in.weight"]
    assert torch.equal(torch.from_numpy(stored_weight(bundle, use).copy()), weight.float())


@pytest.mark.parametrize("packed", ["sd1-fp32"], indirect=True)
def test_full_size_uses_what_was_carried(
    packed: tuple[Exported, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It neither draws nor exports; a damaged archive is named, and the export takes its place."""
    made: list[str] = []
    monkeypatch.setattr(full_size, "random_checkpoint", lambda folder: made.append(folder.name))
    monkeypatch.setattr(full_size, "command", lambda *words: made.append(str(words[0])))
    _, archive = packed

    def run(work: Path) -> Report:
        place = Place(work, graphs=archive.parent, backends=("onnxruntime",))
        report = Report(work / "report.json")
        full_size.run(place, report)
        return report

    report = run(tmp_path / "one")
    assert (made, report.verdict) == ([], "passed")
    assert report.figures["weights are those of the export"]
    assert report.figures["seconds: weights of carried graphs"] > 0
    whole = archive.read_bytes()
    for number, damaged in enumerate((whole[: len(whole) // 2], b"no archive", whole[:-2000] + b"x" * 2000)):
        made.clear()
        archive.write_bytes(damaged)
        report = run(tmp_path / f"damaged-{number}")
        assert made == ["sd15.checkpoint", "export"]
        assert report.notes[0].startswith(f"{archive} cannot be used, carry it again: ")
        assert not list((tmp_path / f"damaged-{number}").glob(".*"))


@pytest.fixture
def tiny(exported: Callable[[str], Exported], monkeypatch: pytest.MonkeyPatch) -> None:
    """A size "tiny" of `make_checkpoint`."""
    folder = exported("sd1-fp32").checkpoint
    parts = ("unet", "vae", "text_encoder")
    configs: dict[str, Any] = {part: json.loads((folder / part / "config.json").read_text()) for part in parts}
    configs["scheduler"] = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    configs |= {"tokenizer": {"pad_token": "<|endoftext|>"}, "index": {"_class_name": "StableDiffusionPipeline"}}
    monkeypatch.setitem(make_checkpoint.SIZES, "tiny", configs)


@pytest.mark.usefixtures("tiny")
def test_the_draws_are_those_of_the_checkpoint(tmp_path: Path) -> None:
    make_checkpoint.make_checkpoint(tmp_path / "made", "tiny", torch.float16, seed=5)
    tensors = [Tensor(*row) for row in make_checkpoint.tensors_of("tiny")]
    for _ in carried._saved(carried._drawn(5, tensors), tmp_path / "drawn"):
        pass
    assert len(content(tmp_path / "drawn")) == 3
    for file, drawn in content(tmp_path / "drawn").items():
        assert drawn == (tmp_path / "made" / file).read_bytes(), file


BLOCKED = ("diffusers", "transformers", "accelerate", "onnx", "onnx_ir", "onnxscript", "onnxruntime")


@pytest.mark.slow
@pytest.mark.usefixtures("tiny")
def test_nothing_but_pytorch_is_needed_there(tmp_path: Path) -> None:
    """From the export to pictures: the bundle passes its goldens, which PyTorch drew from the same weights."""
    archive = prepare(tmp_path, "tiny", seed=3)
    assert [file.name for file in tmp_path.iterdir()] == ["tiny.tar.xz"]
    assert archive.stat().st_size < 2_000_000
    words = ["graphs", "restore", str(archive), str(tmp_path / "checkpoint"), str(tmp_path / "bundle")]
    code = f"import sys; sys.modules.update(dict.fromkeys({BLOCKED})); sys.argv = {words}\n"
    code += "from benchmarks.gpu.full_size_graphs import main; sys.exit(main())"
    environment = {"PYTHONPATH": f"{ROOT}/typings:{ROOT}", "PATH": "/usr/bin:/bin"}
    child = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert "the weights of the export" in child.stdout, child.stderr
    with Pipeline.load(tmp_path / "bundle", backend="onnxruntime", device="cpu") as pipe:
        assert pipe.bundle.altered_files() == []
        assert all(check.passed for check in verify_goldens(pipe))
