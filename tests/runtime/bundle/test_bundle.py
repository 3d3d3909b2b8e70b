"""Bundles: strict manifest, missing and damaged files, hashes, goldens, and the JSON schema."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from safetensors.numpy import load_file, save_file
from support.exports import EXPORTS, ROOT, Exported

from latentrt.runtime import Bundle, BundleError, Pipeline
from latentrt.runtime.bundle.manifest import manifest_schema
from latentrt.runtime.cli.main import main
from latentrt.runtime.goldens import verify_goldens


@pytest.fixture
def copy(sd1: Exported, tmp_path: Path) -> Path:
    """A copy of a bundle that the test may damage."""
    return Path(shutil.copytree(sd1.bundle, tmp_path / "copy"))


def edit(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    file = bundle / "bundle.json"
    manifest = json.loads(file.read_text())
    change(manifest)
    file.write_text(json.dumps(manifest))


def flip_a_byte(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def test_the_schema_is_the_one_of_the_code() -> None:
    """Regenerate with: python -c "from latentrt.runtime.bundle import manifest_schema as s; print(s(), end='')"."""
    assert (ROOT / "engines" / "bundle.schema.json").read_text() == manifest_schema()


@pytest.mark.parametrize("name", [*EXPORTS, "shapes"])
def test_manifests_follow_the_schema(exported: Callable[[str], Exported], name: str) -> None:
    schema = json.loads((ROOT / "engines" / "bundle.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    manifest = json.loads((exported(name).bundle / "bundle.json").read_text())
    jsonschema.validate(manifest, schema)
    manifest["model"]["latent_chanels"] = 4
    with pytest.raises(jsonschema.ValidationError, match="latent_chanels"):
        jsonschema.validate(manifest, schema)


def _of_the_first_format(manifest: dict[str, Any]) -> dict[str, Any]:
    manifest.pop("plans", None)
    manifest["format"] = "latentrt.bundle/1"
    return manifest


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda m: m.update(format="latentrt.bundle/3"),
            r"'latentrt.bundle/3'.* reads only 'latentrt.bundle/1', 'latentrt.bundle/2' and 'latentrt.control/1'",
        ),
        (lambda m: m.update(format=["latentrt.bundle/2"]), r"has format \['latentrt.bundle/2'\]"),
        (lambda m: m.pop("format"), r"has format None"),
        (
            lambda m: m["graphs"].update(preview_decoder=m["graphs"]["vae_encoder"]),
            r"graphs\.preview_decoder has no tensor latents, images, nonfinite",
        ),
        (
            lambda m: _of_the_first_format(m)["graphs"].update(preview_decoder=m["graphs"]["vae_decoder"]),
            r"has the key 'graphs\.preview_decoder', which the format 'latentrt\.bundle/1' has not",
        ),
        (
            lambda m: m["model"].update(famly="sd1"),
            r"bundle.json.model has an unknown key 'famly'; did you mean 'family'",
        ),
        (lambda m: m["model"].pop("registers"), r"bundle.json.model is missing 'registers'"),
        (lambda m: m["model"].update(registers="6"), r"model.registers: expected int, got str"),
        (lambda m: m["model"].update(registers=True), r"model.registers: expected int, got bool"),
        (lambda m: m["graphs"]["denoise"]["inputs"][0].update(shape=[1.5]), r"inputs\[0\].shape\[0\]: expected int"),
        (lambda m: m["files"].update({"../evil": {"size": 1, "sha256": ""}}), r"outside the bundle"),
        (lambda m: m["files"].update({"/etc/hosts": {"size": 1, "sha256": ""}}), r"outside the bundle"),
    ],
)
def test_a_malformed_manifest_is_refused(copy: Path, change: Callable[[dict[str, Any]], object], message: str) -> None:
    Bundle.open(copy)
    edit(copy, change)
    with pytest.raises(BundleError, match=message):
        Bundle.open(copy)


def test_a_bundle_that_is_not_whole_is_refused(copy: Path) -> None:
    weights = copy / "denoise.onnx.data"
    data = weights.read_bytes()
    weights.write_bytes(data[:-1])
    with pytest.raises(
        BundleError, match=r"denoise.onnx.data has [\d,]+ bytes instead of [\d,]+. Copy or export the bundle again"
    ):
        Pipeline.load(copy)
    weights.unlink()
    with pytest.raises(BundleError, match=r"denoise.onnx.data is missing"):
        Pipeline.load(copy)


def test_what_is_no_bundle_is_refused(sd1: Exported, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"not a folder.*latentrt export"):
        Bundle.open(tmp_path / "nothing")
    with pytest.raises(BundleError, match=r"has no bundle.json: create one"):
        Bundle.open(tmp_path)
    with pytest.raises(BundleError, match=r"this is a checkpoint; export it first"):
        Bundle.open(sd1.checkpoint)
    (tmp_path / "bundle.json").write_text("{")
    with pytest.raises(BundleError, match=r"is not valid JSON"):
        Bundle.open(tmp_path)


@pytest.mark.parametrize("name", ["denoise.onnx.data", "tokenizer/tokenizer.json", "golden/golden.safetensors"])
def test_verify_finds_an_altered_file(copy: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(copy)]) == 0
    report = capsys.readouterr().out
    assert "all hashes agree" in report
    assert report.count("ok  ") == 4
    flip_a_byte(copy / name)
    assert main(["verify", str(copy), "--hashes-only"]) == 1
    assert f"altered: {name}." in capsys.readouterr().out


@pytest.mark.parametrize("array", ["input_ids", "embedding", "latents", "image"])
def test_goldens_notice_each_stage(copy: Path, array: str) -> None:
    """The stored output of one stage is changed; the check of that stage fails."""
    file = copy / "golden" / "golden.safetensors"
    arrays = load_file(file)
    changed = arrays[array].copy()
    changed[..., : changed.shape[-1] // 2] -= 1
    save_file({**arrays, array: changed}, file)
    with Pipeline.load(copy, device="cpu") as pipe:
        checks = {check.name: check.passed for check in verify_goldens(pipe)}
    stage = {"input_ids": "ids", "embedding": "text embedding"}.get(array, array)
    assert not checks[stage]


@pytest.mark.parametrize("name", ["sd2-fp16", "sd2-fp32-opset18", "shapes"])
def test_other_precisions_and_opsets_reproduce_their_goldens(
    exported: Callable[[str], Exported], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(exported(name).bundle)]) == 0, capsys.readouterr().out


@pytest.mark.slow
def test_bf16_says_why_it_does_not_run_here(
    exported: Callable[[str], Exported], capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = str(exported("sd1-bf16").bundle)
    assert main(["verify", bundle, "--hashes-only"]) == 0
    assert main(["verify", bundle, "--device", "cpu"]) == 1
    assert "no bf16 kernels for CPUs: export with --precision fp32" in capsys.readouterr().err


def test_info_shows_graphs_and_sizes(sd1: Exported, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(sd1.bundle)]) == 0
    report = capsys.readouterr().out
    for word in ("sd1, epsilon", "fp32", "denoise", "next_state", "vae_encoder", "engines: none", "64x64, 6 steps"):
        assert word in report
