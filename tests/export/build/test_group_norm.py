"""Group norms as ONNX Runtime's GroupNorm: values, shared weights, unsupported nodes, and the CUDA backend."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from support.contrib_ops import CONTRIB_OPS
from support.exports import SHAPES, Exported
from support.lora_files import shapes_file
from support.simulator import Machine, machine

from latentrt.export.build.ort_graphs import build_ort_graphs
from latentrt.export.build.rewrites.group_norm import use_ort_group_norms
from latentrt.runtime import ExportError, InputError, Pipeline
from latentrt.runtime.bundle import Bundle, EngineList, shape_at
from latentrt.runtime.cli.main import main
from latentrt.runtime.goldens import verify_goldens

PROMPT = "a small blue diamond on a white background"
FEW: dict[str, Any] = {"num_inference_steps": 3, "output_type": "latent", "seed": 4}
CUDA = ("cuda",)
GRAPHS = ("denoise", "vae_decoder", "vae_encoder")
BUILT = ("text_encoder", *GRAPHS)  # the text encoder has layer norms
SIZES = {"B": 1, "G": 2, "n": 2, "h": 8, "w": 6, "H": 32, "W": 24, "S": 77}


@pytest.fixture(autouse=True)
def _cache_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A copy of the embedded bundle, with its graphs built."""
    copy = Path(shutil.copytree(SHAPES.bundle, tmp_path / "shapes"))
    assert [built.record.graph for built in build_ort_graphs(copy, devices=CUDA)] == list(BUILT)
    return copy


# --- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize(("name", "tolerance"), [("shapes", 2e-6), ("sd1-fp32", 2e-6), ("sd2-fp16", 4e-3)])
def test_a_graph_computes_what_it_did(
    exported: Callable[[str], Exported], name: str, graph: str, tolerance: float
) -> None:
    """Same outputs as the exported graph; covers inputs (n, c, l) and compact and fp16 weights."""
    bundle = Bundle.open(exported(name).bundle)
    spec = bundle.graph(graph)
    random = np.random.default_rng(5)
    feeds = {t.name: random.standard_normal(shape_at(t, SIZES)).astype(t.dtype) for t in spec.inputs}
    expected = onnxruntime.InferenceSession(bundle.file(spec.file), providers=["CPUExecutionProvider"]).run(None, feeds)
    model = ir.load(bundle.file(spec.file))
    before = [node.op_type for node in model.graph].count("GroupNormalization")
    assert use_ort_group_norms(model) == before > 9
    activations = [n.attributes["activation"].as_int() for n in model.graph if n.op_type == "GroupNorm"]
    assert 0 < sum(activations) <= len(activations) == before
    left = {node.op_type for node in model.graph}
    assert "GroupNormalization" not in left
    proto = ir.to_proto(model)
    onnx.load_external_data_for_model(proto, str(bundle.path))
    got = ReferenceEvaluator(proto, new_ops=CONTRIB_OPS).run(None, feeds)
    for output, mine, wanted in zip(spec.outputs, got, expected, strict=True):
        assert mine.dtype == wanted.dtype
        if output.dtype == "uint8":  # rounded: differences of one level, and few
            difference = np.abs(mine.astype(int) - wanted)
            assert difference.max() <= 1
            assert (difference > 0).mean() < (0.1 if name.endswith("fp16") else 1e-3)
        else:
            np.testing.assert_allclose(mine, wanted, rtol=0, atol=tolerance * np.abs(wanted).max())


def one_norm(
    *tail: onnx.NodeProto,
    shape: tuple[int | str, ...] = (2, 16, 5, 3),
    groups: int = 4,
    dtype: int = TensorProto.FLOAT,
    opset: int = 23,
    scales: int | None = None,
    outputs: tuple[str, ...] = ("y",),
    **attributes: int,
) -> ir.Model:
    """x -> GroupNormalization -> y, followed by `tail`."""
    count = scales or int(shape[1])
    array = np.linspace(-1, 2, count)
    weights = [helper.make_tensor(name, dtype, [count], k * array) for name, k in (("scale", 1), ("bias", -0.4))]
    norm = helper.make_node("GroupNormalization", ["x", "scale", "bias"], ["y"], num_groups=groups, **attributes)
    values = [helper.make_tensor_value_info(name, dtype, shape) for name in ("x", *outputs)]
    graph = helper.make_graph([norm, *tail], "g", values[:1], values[1:], weights)
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10))


def differs(model: ir.Model) -> tuple[int, list[str], float]:
    """Rewrite a graph; returns the number of norms, its operators, and the largest relative difference."""
    x = np.random.default_rng(1).standard_normal(model.graph.inputs[0].shape.numpy()).astype(np.float32)
    expected = ReferenceEvaluator(ir.to_proto(model)).run(None, {"x": x})
    count = use_ort_group_norms(model)
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto)
    got = ReferenceEvaluator(proto, new_ops=CONTRIB_OPS).run(None, {"x": x})
    worst = max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(got, expected, strict=True))
    return count, [node.op_type for node in model.graph], worst


SIGMOID = helper.make_node("Sigmoid", ["y"], ["gate"])
SILU = (SIGMOID, helper.make_node("Mul", ["gate", "y"], ["z"]))


def test_silu_is_taken_in() -> None:
    count, ops, worst = differs(one_norm(*SILU, outputs=("z",)))
    assert (count, ops) == (1, ["Transpose", "GroupNorm", "Transpose"])
    assert worst < 2e-6
    assert [o.name for o in one_norm(*SILU, outputs=("z",)).graph.outputs] == ["z"]


def test_swish_is_taken_in() -> None:
    """Swish is ONNX's SiLU, from opset 24."""
    swish = helper.make_node("Swish", ["y"], ["z"])
    count, ops, worst = differs(one_norm(swish, outputs=("z",), opset=24))
    assert (count, ops) == (1, ["Transpose", "GroupNorm", "Transpose"])
    assert worst < 2e-6
    sharper = helper.make_node("Swish", ["y"], ["z"], alpha=1.5)
    _, ops, worst = differs(one_norm(sharper, outputs=("z",), opset=24))
    assert ops[-1] == "Swish"
    assert worst < 2e-6


@pytest.mark.parametrize(
    ("tail", "outputs"),
    [
        (SILU, ("z", "y")),  # the norm itself is also an output
        (SILU, ("z", "gate")),
        ((*SILU, helper.make_node("Neg", ["y"], ["w"])), ("z", "w")),
        ((*SILU, helper.make_node("Neg", ["gate"], ["w"])), ("z", "w")),
        ((SIGMOID, helper.make_node("Mul", ["y", "y"], ["z"]), helper.make_node("Neg", ["gate"], ["w"])), ("z", "w")),
    ],
)
def test_what_is_used_elsewhere_is_kept(tail: tuple[onnx.NodeProto, ...], outputs: tuple[str, ...]) -> None:
    count, ops, worst = differs(one_norm(*tail, outputs=outputs))
    assert count == 1
    assert ops[:3] == ["Transpose", "GroupNorm", "Transpose"]
    assert ops[3:] == [node.op_type for node in tail]
    assert worst < 2e-6


@pytest.mark.parametrize(
    "facts",
    [
        {"shape": (2, 12, 5, 3), "groups": 4},  # three channels per group
        {"shape": (1, 1028, 2, 2), "groups": 2},  # 514 channels per group
        {"shape": (2, 16, 5)} | {"opset": 18, "scales": 4},
        {"shape": (2, 16, 2, 3, 2)},
        {"shape": (2, 16)},
        {"dtype": TensorProto.BFLOAT16},
        {"stash_type": TensorProto.FLOAT16},
    ],
)
def test_what_the_kernel_refuses_is_left(facts: dict[str, Any]) -> None:
    model = one_norm(**facts)
    assert use_ort_group_norms(model) == 0
    assert [node.op_type for node in model.graph] == ["GroupNormalization"]
    assert "com.microsoft" not in model.opset_imports


@pytest.mark.parametrize(("shape", "groups"), [((1, 1024, 2, 2), 2), ((3, 6, 7), 3), ((2, 2, 1), 1)])
def test_the_limits_of_the_kernel_are_within(shape: tuple[int, ...], groups: int) -> None:
    count, _, worst = differs(one_norm(shape=shape, groups=groups))
    assert count == 1
    assert worst < 2e-6


# --- files ------------------------------------------------------------------------------------------------------------


def test_files_share_the_weights_and_are_kept(bundle: Path) -> None:
    files = EngineList.of_bundle(Bundle.open(bundle))
    assert [record.graph for record in files.engines] == list(BUILT)
    for record in files.engines:
        assert files.intact(record)
        original = Bundle.open(bundle).graph(record.graph).file
        model, exported = (ir.load(path) for path in (files.path(record), bundle / original))
        for name, value in exported.graph.initializers.items():
            mine, theirs = model.graph.initializers[name].const_value, value.const_value
            assert type(mine) is type(theirs)
            if isinstance(theirs, ir.ExternalTensor):
                assert isinstance(mine, ir.ExternalTensor)
                assert (mine.location, mine.offset, mine.length) == (f"{original}.data", theirs.offset, theirs.length)
    assert all(built.seconds is None for built in build_ort_graphs(bundle, devices=CUDA))
    assert main(["verify", str(bundle), "--device", "cpu"]) == 0


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["build", str(SHAPES.bundle), "--backend", "onnxruntime", "--engines", str(tmp_path / "elsewhere")]
    assert main([*command, "--graph", "vae_decoder", "--device", "cuda"]) == 0
    assert capsys.readouterr().out.split()[:4] == ["vae_decoder", "any", "size,", "cuda"]
    assert main([*command, "--height", "64"]) == 1
    assert "no sizes and no builder options" in capsys.readouterr().err
    assert main([*command, "--graph", "time"]) == 1
    assert (
        "nothing to replace by an operator of onnxruntime (on cpu attention; on cuda group_norm, "
        in capsys.readouterr().err
    )
    (record,) = EngineList.of_bundle(Bundle.open(SHAPES.bundle), tmp_path / "elsewhere").engines
    assert (record.profile, record.device) == ({}, "cuda")


def test_info_lists_them(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(bundle)]) == 0
    assert "vae_decoder     any size" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "rewrites", "reason"), [("sd1-bf16", (), "bf16"), ("sd2-fp32-opset18", ("group_norm",), "opset 18")]
)
def test_bundles_without_such_operators_are_refused(
    exported: Callable[[str], Exported], tmp_path: Path, name: str, rewrites: tuple[str, ...], reason: str
) -> None:
    with pytest.raises(ExportError, match=f"(?s)nothing to replace.*on cuda.*{reason}"):
        list(build_ort_graphs(exported(name).bundle, devices=CUDA, engines=tmp_path, rewrites=rewrites))


def test_wrong_names_and_altered_graphs_are_refused(bundle: Path) -> None:
    with pytest.raises(InputError, match="did you mean 'denoise'"):
        list(build_ort_graphs(bundle, devices=CUDA, graphs=["denois"]))
    path = bundle / "denoise.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(ExportError, match=r"altered: denoise\.onnx"):
        list(build_ort_graphs(bundle, devices=CUDA))


# --- on the simulated GPU ---------------------------------------------------------------------------------------------


@pytest.fixture
def gpu() -> Iterator[Machine]:
    with machine(onnxruntime={}) as simulated:
        yield simulated


@pytest.fixture(scope="module")
def expected() -> NDArray[Any]:
    with Pipeline.load(device="cpu") as cpu:
        latents: NDArray[Any] = cpu(PROMPT, **FEW).latents
    return latents


def drawn(bundle: Path | None, expected: NDArray[Any], **options: Any) -> str:
    """Compare an image's latents on the GPU with those on the CPU; returns the file of `denoise`."""
    with Pipeline.load(bundle, backend="onnxruntime", **options) as pipe:
        np.testing.assert_allclose(pipe(PROMPT, **FEW).latents, expected, rtol=0, atol=2e-5 * np.abs(expected).max())
        return str(pipe._backend._engines.get("denoise")._path)  # type: ignore[attr-defined]


@pytest.mark.usefixtures("gpu")
def test_they_draw_the_same(bundle: Path, expected: NDArray[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    assert "engines/denoise-" in drawn(bundle, expected)
    monkeypatch.chdir(bundle.parent)
    assert "engines/denoise-" in drawn(Path(bundle.name), expected)
    with Pipeline.load(bundle, backend="onnxruntime") as pipe:
        assert all(check.passed for check in verify_goldens(pipe))


@pytest.mark.usefixtures("gpu")
def test_a_folder_of_their_own(tmp_path: Path, expected: NDArray[Any]) -> None:
    folder = tmp_path / "elsewhere"
    assert drawn(None, expected, engines=folder).endswith("shapes/denoise.onnx")
    list(build_ort_graphs(SHAPES.bundle, devices=CUDA, engines=folder))
    assert drawn(None, expected, engines=folder).startswith(str(folder))


@pytest.mark.usefixtures("gpu")
def test_lora_and_back(bundle: Path, tmp_path: Path, expected: NDArray[Any]) -> None:
    lora = shapes_file(tmp_path / "style.safetensors", seed=4)
    with Pipeline.load(bundle, device="cpu") as cpu:
        cpu.set_loras({lora: 0.7})
        changed = cpu(PROMPT, **FEW).latents
    with Pipeline.load(bundle, backend="onnxruntime") as pipe:
        for loras, wanted in (({}, expected), ({lora: 0.7}, changed), ({}, expected)):
            pipe.set_loras(loras)
            np.testing.assert_allclose(pipe(PROMPT, **FEW).latents, wanted, rtol=0, atol=2e-5 * np.abs(wanted).max())
            assert "engines/denoise-" in str(pipe._backend._engines.get("denoise")._path)  # type: ignore[attr-defined]
    assert np.abs(changed - expected).max() > 0.01 * np.abs(expected).max()


def export_again(bundle: Path, graph: str) -> None:
    """Change a graph's ONNX file without changing the graph, as another version of the exporter might."""
    model = onnx.load_model(bundle / f"{graph}.onnx", load_external_data=False)
    model.producer_name = "another"
    (bundle / f"{graph}.onnx").write_bytes(data := model.SerializeToString())
    manifest = json.loads((bundle / "bundle.json").read_text())
    manifest["files"][f"{graph}.onnx"] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (bundle / "bundle.json").write_text(json.dumps(manifest))


@pytest.mark.usefixtures("gpu")
def test_those_of_another_export_are_not_used(
    bundle: Path, expected: NDArray[Any], caplog: pytest.LogCaptureFixture
) -> None:
    export_again(bundle, "denoise")
    assert drawn(bundle, expected) == str(bundle / "denoise.onnx")
    assert "the bundle has been exported again since" in caplog.text
    assert f"latentrt build {bundle} --backend onnxruntime" in caplog.text
    again = {built.record.graph: built.seconds for built in build_ort_graphs(bundle, devices=CUDA)}
    assert again["denoise"] is not None
    assert again["vae_decoder"] is None
    assert "engines/denoise-" in drawn(bundle, expected)
    names = sorted(path.name.split("-")[0] for path in (bundle / "engines").iterdir())
    assert names == sorted(BUILT)


@pytest.mark.usefixtures("gpu")
def test_a_damaged_one_is_not_used(bundle: Path, expected: NDArray[Any], caplog: pytest.LogCaptureFixture) -> None:
    (path,) = (bundle / "engines").glob("denoise-*")
    status, data = path.stat(), bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert drawn(bundle, expected) == str(bundle / "denoise.onnx")
    assert "its hash does not match" in caplog.text


def test_without_the_kernel_the_exported_graph_runs(
    bundle: Path, expected: NDArray[Any], caplog: pytest.LogCaptureFixture
) -> None:
    with machine(onnxruntime={"group_norm": False}):
        assert drawn(bundle, expected) == str(bundle / "denoise.onnx")
    assert "the built graph of denoise cannot be loaded, using the exported one" in caplog.text
    assert "Could not find an implementation for GroupNorm" in caplog.text


def test_without_capture_they_still_run(bundle: Path, expected: NDArray[Any], caplog: pytest.LogCaptureFixture) -> None:
    with machine(onnxruntime={"captures": False}):
        assert "engines/denoise-" in drawn(bundle, expected)
    assert caplog.text.count("cannot be captured as a CUDA graph") == 1
