"""Control bundles: what they are made from, what is refused, and that they prove themselves."""

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file as load_arrays
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import load_file, save_file
from support.controlnets import tiny_controlnet, tiny_t2i_adapter
from support.exports import ROOT, Exported
from support.original_layout import unet_name

from latentrt.export.control.kinds import config_of_file, kind_of_config, renamed_weights
from latentrt.export.control.source import ControlCheckpoint, ControlSource
from latentrt.export.control.write import ControlOptions, export_control
from latentrt.runtime.bundle import ControlBundle, hashed_files
from latentrt.runtime.bundle.control_checks import control_faults
from latentrt.runtime.bundle.control_manifest import control_schema
from latentrt.runtime.cli.main import main
from latentrt.runtime.errors import BundleError, CheckpointError, ExportError


def original_names(names: Iterable[str]) -> dict[str, str]:
    """Names of a ControlNet of the public sizes in diffusers -> in the original layout."""
    found = {}
    for name in names:
        part, end = name.rsplit(".", 1)
        if name.startswith("controlnet_cond_embedding."):
            block = part.removeprefix("controlnet_cond_embedding.")
            number = {"conv_in": 0, "conv_out": 14}.get(block)
            found[name] = f"input_hint_block.{2 * int(block.split('.')[1]) + 2 if number is None else number}.{end}"
        elif name.startswith("controlnet_down_blocks."):
            found[name] = f"zero_convs.{part.split('.')[1]}.0.{end}"
        elif name.startswith("controlnet_mid_block."):
            found[name] = f"middle_block_out.0.{end}"
        else:
            found[name] = unet_name(name, 2, {})
    return {name: f"control_model.{old}" for name, old in found.items()}


@pytest.mark.parametrize(("width", "count"), [(768, 340), (1024, 340), (2048, None)])
def test_configs_and_names_of_public_files(width: int, count: int | None) -> None:
    """By names and shapes alone; original files are those of Stable Diffusion 1 and 2."""
    from accelerate import init_empty_weights
    from diffusers import ControlNetModel

    from latentrt.export.control.kinds import _PUBLIC

    config = {**_PUBLIC[width], **({"transformer_layers_per_block": [1, 2, 10]} if width == 2048 else {})}
    with init_empty_weights():
        tensors = ControlNetModel.from_config(config).state_dict()
    file: Mapping[str, torch.Tensor] = tensors
    if count is not None:
        names = original_names(tensors)
        file = {old: tensors[name] for name, old in names.items()}
        assert len(file) == len(tensors) == count
    found = config_of_file("file.safetensors", file)
    assert kind_of_config("file", found) == "controlnet"
    assert {key: found[key] for key in config} == config
    renamed = renamed_weights("controlnet", file, found)
    assert {name: tensor.shape for name, tensor in renamed.items()} == {n: t.shape for n, t in tensors.items()}


def test_small_nets_of_sdxl_have_fewer_blocks() -> None:
    from accelerate import init_empty_weights
    from diffusers import ControlNetModel

    from latentrt.export.control.kinds import _PUBLIC

    config = {**_PUBLIC[2048], "transformer_layers_per_block": [1, 1, 1]}
    with init_empty_weights():
        tensors = ControlNetModel.from_config(config).state_dict()
    assert config_of_file("small.safetensors", tensors)["transformer_layers_per_block"] == [1, 1, 1]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["lllite_unet_down.weight"], "a ControlNet-LLLite, which changes"),
        (["lora_controlnet", "input_hint_block.0.weight"], "a Control-LoRA"),
        (["model.diffusion_model.input_blocks.0.0.weight"], "a checkpoint; export it with latentrt export"),
        (["lora_unet_down.lora_up.weight"], "a LoRA; merge it"),
        (["something.weight"], "of an unknown kind"),
        (["control_model.input_hint_block.0.weight"], "reads texts of width None: expected 768, 1024, 2048"),
    ],
)
def test_other_files_are_refused_by_name(names: list[str], message: str, tmp_path: Path) -> None:
    save_file({name: torch.zeros(4, 3, 3, 3) for name in names}, tmp_path / "file.safetensors")
    with pytest.raises(CheckpointError, match=message):
        export_control(tmp_path / "file.safetensors", tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"file.safetensors"}


def test_a_file_and_its_folder_are_the_same_net(exported: Callable[[str], Exported], tmp_path: Path) -> None:
    net = exported("sd1-net").checkpoint
    tensors = load_file(net / "diffusion_pytorch_model.safetensors")
    save_file(tensors, tmp_path / "net.safetensors")
    with pytest.raises(CheckpointError, match=r"width 32: expected .* --config"):
        ControlCheckpoint(ControlSource(str(tmp_path / "net.safetensors")))
    given = ControlSource(str(tmp_path / "net.safetensors"), config=str(net))
    module = ControlCheckpoint(given).load(torch.float32)
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in module.state_dict().items())


def test_every_tensor_is_used(exported: Callable[[str], Exported], tmp_path: Path) -> None:
    net = tmp_path / "net"
    shutil.copytree(exported("sd1-net").checkpoint, net)
    file = net / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    save_file({**tensors, "more.weight": torch.zeros(3)}, file)
    with pytest.raises(CheckpointError, match=r"1 tensors that nothing would use, such as more\.weight"):
        ControlCheckpoint(ControlSource(str(net)))
    save_file({name: t for name, t in tensors.items() if name != "controlnet_mid_block.bias"}, file)
    with pytest.raises(CheckpointError, match=r"1 missing, such as controlnet_mid_block\.bias"):
        ControlCheckpoint(ControlSource(str(net)))


def test_original_names_of_t2i_adapters(exported: Callable[[str], Exported], tmp_path: Path) -> None:
    base = exported("sd1-ports-fp32").checkpoint
    adapter = tiny_t2i_adapter(tmp_path / "adapter", base / "unet", seed=4)
    originals = {}
    for name, tensor in adapter.state_dict().items():
        parts = name.removeprefix("adapter.").split(".")
        if parts[0] == "body":
            block = 2 * int(parts[1]) + (int(parts[3]) if parts[2] == "resnets" else 0)
            parts = ["body", str(block), *(parts[4:] if parts[2] == "resnets" else parts[2:])]
        originals[".".join(parts)] = tensor
    renamed = renamed_weights("t2i-adapter", originals, {})
    assert {name: tuple(t.shape) for name, t in renamed.items()} == {
        name: tuple(t.shape) for name, t in adapter.state_dict().items()
    }


def test_it_proves_itself(
    exported: Callable[[str], Exported], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "net"
    shutil.copytree(exported("sd1-net").bundle, folder)
    assert main(["verify", str(folder), "--device", "cpu"]) == 0
    assert "reproduces its goldens on" in capsys.readouterr().out
    assert main(["info", str(folder)]) == 0
    assert "(controlnet), fp32" in capsys.readouterr().out
    bundle = ControlBundle.open(folder)
    golden = bundle.file(bundle.manifest.golden.file)
    arrays = load_arrays(golden)
    arrays["out.residual_01"] = arrays["out.residual_01"] * np.float32(1.01)
    save_arrays(arrays, golden)
    assert main(["verify", str(folder), "--device", "cpu"]) == 1
    assert "altered: golden/golden.safetensors" in capsys.readouterr().out
    _relisted(folder)
    assert main(["verify", str(folder), "--device", "cpu"]) == 1
    assert "FAIL residual_01: relative error 9.9" in capsys.readouterr().out


def _relisted(folder: Path) -> None:
    """Give the manifest the hash of a changed golden."""
    manifest = json.loads((folder / "bundle.json").read_text())
    listed = hashed_files(folder)["golden/golden.safetensors"]
    manifest["files"]["golden/golden.safetensors"] = {"size": listed.size, "sha256": listed.sha256}
    (folder / "bundle.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("in.state", lambda array: array.reshape(-1)),
        ("in.hint", lambda array: array[:, :-1]),
        ("in.weights", lambda array: array.astype(np.float64)),
        ("in.timesteps", None),
        ("out.residual_01", lambda array: array[:, :-1]),
        ("out.residual_02", lambda array: array * np.float32(np.nan)),
        ("out.residual_03", lambda array: array.astype(np.int64)),
    ],
)
def test_goldens_of_other_shapes_are_damage(
    exported: Callable[[str], Exported],
    tmp_path: Path,
    name: str,
    change: Callable[[np.ndarray], np.ndarray] | None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "net"
    shutil.copytree(exported("sd1-net").bundle, folder)
    golden = folder / "golden" / "golden.safetensors"
    arrays = load_arrays(golden)
    array = arrays.pop(name)
    save_arrays(arrays if change is None else arrays | {name: np.ascontiguousarray(change(array))}, golden)
    _relisted(folder)
    assert main(["verify", str(folder), "--device", "cpu"]) == 1
    said = capsys.readouterr()
    assert "golden.safetensors is damaged: " in said.err, said
    assert name.partition(".")[2] in said.err or "out." in name, said


def test_faults_of_manifests(exported: Callable[[str], Exported]) -> None:
    manifest = ControlBundle.open(exported("sd1-net").bundle).manifest
    assert not [*control_faults(manifest)]
    control = manifest.graphs["control"]
    for changed, message in (
        ({"kind": "net"}, "kind is 'net'"),
        ({"height": 0}, "height is 0"),
        ({"graphs": {**manifest.graphs, "more": control}}, "expected hint, control_time"),
        ({"graphs": {**manifest.graphs, "control": replace(control, outputs=control.outputs[:-1])}}, "are not like"),
        (
            {"graphs": {**manifest.graphs, "control": replace(control, outputs=control.outputs[::-1])}},
            "no tensors residual_00",
        ),
        ({"files": {}}, "which files does not list"),
    ):
        assert message in " ".join(control_faults(replace(manifest, **changed))), changed


def test_the_schema_is_that_of_the_format() -> None:
    assert (ROOT / "engines" / "control.schema.json").read_text(encoding="utf-8") == control_schema()


def test_what_is_there_is_kept(exported: Callable[[str], Exported], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(ExportError, match="already exists"):
        export_control(exported("sd1-net").checkpoint, tmp_path / "out")
    with pytest.raises(ExportError, match="unknown precision 'fp8'"):
        export_control(exported("sd1-net").checkpoint, tmp_path / "new", ControlOptions("fp8"))
    assert not (tmp_path / "new").exists()
    with pytest.raises(BundleError, match=r"has no bundle\.json"):
        ControlBundle.open(tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "opset"), [("fp16", 23), ("bf16", 23), ("fp32", 18)])
def test_other_precisions(
    exported: Callable[[str], Exported], precision: str, opset: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The export compares with PyTorch."""
    net = exported("sd2-net").checkpoint
    command = ["export-control", str(net), str(tmp_path / "net"), "--precision", precision, "--opset", str(opset)]
    assert main(command) == 0
    dtypes = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}
    outputs = ControlBundle.open(tmp_path / "net").manifest.graphs["control"].outputs
    assert {spec.dtype for spec in outputs} == {dtypes[precision]}
    backend = "openvino" if precision == "bf16" else "onnxruntime"
    assert main(["verify", str(tmp_path / "net"), "--backend", backend, "--device", "cpu"]) == 0
    assert "reproduces its goldens" in capsys.readouterr().out


def test_bgr_is_an_order_of_channels(exported: Callable[[str], Exported], tmp_path: Path) -> None:
    """The hint of a net that reads BGR is turned round by the graph."""
    from latentrt.export.graphs.control import HintGraph

    base = exported("sd1-ports-fp32").checkpoint
    plain = tiny_controlnet(tmp_path / "rgb", base / "unet", seed=5)
    turned = tiny_controlnet(tmp_path / "bgr", base / "unet", seed=5, controlnet_conditioning_channel_order="bgr")
    hint = torch.rand(1, 16, 16, 3)
    assert torch.equal(HintGraph(turned)(hint), HintGraph(plain)(hint.flip(3)))
    assert not torch.equal(HintGraph(turned)(hint), HintGraph(plain)(hint))
