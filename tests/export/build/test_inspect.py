"""`latentrt inspect`: how layers are read, compared with a graph, and printed."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from support.exports import SHAPES
from support.simulator import machine

from latentrt.export.build.fusible import Fusible, fusible_parts
from latentrt.export.build.fusion import OPERATIONS_PER_BYTE, fusion_of
from latentrt.export.build.layers import Layer, LayerTensor, layers_from_text, layers_json, read_layers
from latentrt.runtime import BundleError
from latentrt.runtime.bundle import Bundle, EngineList
from latentrt.runtime.cli.main import main


def described(name: str, shape: str, facts: str) -> str:
    return f"{{ Name: {name}, Dimensions: [{shape}], {facts} }}"


def told(dtype: str) -> str:
    return f"Strides: [7,1], StrideOrder: [1,0], Datatype: {dtype}, Format: (Linear) Row major linear format"


RTX = (
    "Layers:\n"
    f"Name: node_a+node_b_myl0_3, LayerType: gemm, Inputs: [ {described('x', '3,5', told('Half'))}], "
    f"Constants: [ {described('w', '5,7', told('Float'))}, {described('b', '', told('BFloat16'))}], "
    f"Outputs: [ {described('y', '-1,7', told('Int64'))}], TacticName: __stub, StreamId: 0, "
    "Metadata: [ONNX Layer: node_a][ONNX Layer: node_b][ONNX Layer: node_a]\n"
    "Name: __mye1_0_myl0_0, LayerType: shape_call, Inputs: [], Constants: [], Outputs: [], TacticName: , StreamId: 0, "
    "Metadata: \n\nI/O Tensors:\n Name: x, IOMode: Input, DataType: Half, Dimensions: [3,5], Location: Device\n"
)
TENSORRT = (
    "Engine Layer Information:\n"
    "Name: conv + relu, LayerType: CaskConvolution, Inputs: [ { Name: x, Location: Device, Dimensions: [1,3,8,8], "
    "Format/Datatype: Channel major FP16 format where channel % 8 == 0 }], Outputs: [ { Name: y, Location: Device, "
    "Dimensions: [1,4,8,8], Format/Datatype: Half }], ParameterType: Convolution, TacticName: sm90_conv, "
    "TacticValue: 0x1, StreamId: 0, Metadata: [ONNX Layer: conv]\x1e[ONNX Layer: relu]\n"
)


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Path(shutil.copytree(SHAPES.bundle, tmp_path / "shapes"))


def test_layers_are_read_from_the_log() -> None:
    first, second = layers_from_text(RTX)
    assert (first.name, first.kind, first.tactic) == ("node_a+node_b_myl0_3", "gemm", "__stub")
    assert first.nodes == ("node_a", "node_b")
    assert [(t.dtype, t.shape, t.bytes) for t in (*first.inputs, *first.constants, *first.outputs)] == [
        ("fp16", (3, 5), 30),
        ("fp32", (5, 7), 140),
        ("bf16", (), 2),
        ("int64", (-1, 7), None),
    ]
    assert (second.kind, second.inputs, second.nodes, second.tactic) == ("shape_call", (), (), "")


def test_layers_in_the_words_of_tensorrt_10() -> None:
    (layer,) = layers_from_text(TENSORRT)
    assert (layer.kind, layer.tactic, layer.nodes) == (
        "CaskConvolution",
        "sm90_conv",
        ("conv", "relu"),
    )
    assert [(t.dtype, t.shape) for t in (*layer.inputs, *layer.outputs)] == [
        ("fp16", (1, 3, 8, 8)),
        ("fp16", (1, 4, 8, 8)),
    ]
    assert layers_from_text("Engine Layer Information:\nLayer(Conv): conv") == ()


def test_layers_survive_their_file(tmp_path: Path) -> None:
    layers = layers_from_text(RTX)
    file = tmp_path / "a.layers.json"
    file.write_bytes(layers_json(layers))
    assert layers_json(read_layers(file)) == layers_json(layers)
    file.write_text(file.read_text().replace("layers/1", "layers/9"))
    with pytest.raises(BundleError, match=r"its format is not latentrt.layers/1. Build the engine again"):
        read_layers(file)


def test_parts_are_found_in_a_graph() -> None:
    """A norm with SiLU behind a cast, one without; attention as a node, and written out; a softmax that is none."""
    nodes = [
        helper.make_node("GroupNormalization", ["x", "s", "b"], ["n1"], name="norm1", num_groups=2),
        helper.make_node("Cast", ["n1"], ["c1"], name="cast", to=TensorProto.FLOAT),
        helper.make_node("Sigmoid", ["c1"], ["g1"], name="sigmoid"),
        helper.make_node("Mul", ["c1", "g1"], ["m1"], name="silu"),
        helper.make_node("GroupNormalization", ["m1", "s", "b"], ["n2"], name="norm2", num_groups=2),
        helper.make_node("MatMul", ["n2", "w"], ["p"], name="scores"),
        helper.make_node("Add", ["p", "mask"], ["q"], name="masked"),
        helper.make_node("Softmax", ["q"], ["r"], name="softmax"),
        helper.make_node("MatMul", ["r", "w"], ["o"], name="mixed"),
        helper.make_node("Softmax", ["o"], ["z"], name="last"),
        helper.make_node("Gelu", ["z"], ["e"], name="gelu"),
        helper.make_node("Attention", ["e", "e", "e"], ["out"], name="attention"),
        helper.make_node("DequantizeLinear", ["a8", "scale"], ["a"], name="back1"),
        helper.make_node("DequantizeLinear", ["b8", "scale"], ["b"], name="back2"),
        helper.make_node("Conv", ["a", "b"], ["c"], name="both"),
        helper.make_node("Conv", ["c", "b"], ["d"], name="weights alone"),
    ]
    parts = fusible_parts(helper.make_graph(nodes, "g", [], []))
    assert parts.attentions == ("attention", "softmax")
    assert parts.group_norms == {"norm1": "sigmoid"}
    assert parts.quantized == ("both",)
    assert (parts.gelus, parts.products) == (("gelu",), {"scores", "mixed"})


def test_layers_are_compared_with_the_graph() -> None:
    half, byte = LayerTensor("fp16", (10, 10)), LayerTensor("fp8", (10, 10))

    def layer(name: str, *nodes: str, kind: str = "kgen", inputs: int = 1) -> Layer:
        return Layer(name, kind, "", (half,) * inputs, (), (half,), nodes)

    layers = [
        layer("__myl_Move_myl0_0", "norm1", inputs=0),  # sets counters only
        layer("__myl_SiluGnor_myl0_1", "norm1", "silu1"),
        layer("__myl_Gnor_myl0_2", "norm2"),
        layer("__myl_CastSilu_myl0_3", "silu2"),
        layer("__myl_TranResh_myl0_4", "attention1"),
        layer("_gemm_mha_v2_myl0_5", "attention1"),
        layer("__myl_Fc_myl0_6", "linear", "gelu", kind="runtime_fusion"),
        Layer("gemm_myl0_7", "gemm", "", (byte,), (), (half,), ("linear8",)),
        Layer("gemm_myl0_8", "gemm", "", (half,), (), (half,), ("linear16",)),
        # A kernel that multiplies the product before with its scale, computes GELU, and quantizes.
        Layer("__myl_MulErf_myl0_9", "kgen", "", (half,), (), (byte,), ("linear16", "gelu16")),
    ]
    parts = Fusible(
        ("attention1", "attention2"),
        {"norm1": "silu1", "norm2": "silu2"},
        ("gelu", "gelu16"),
        frozenset({"linear", "linear8", "linear16"}),
        ("linear8", "linear16"),
    )
    found = fusion_of(layers, parts, {"attention1": 100 * 400 * OPERATIONS_PER_BYTE, "linear": 7})
    assert (found.attention.fused, found.attention.others) == (1, ("attention2",))
    assert (found.group_norm.fused, found.group_norm.others) == (1, ("norm2",))
    assert (found.geglu.fused, found.geglu.others) == (1, ("gelu16",))
    assert (found.quantized.fused, found.quantized.others) == (1, ("linear16",))
    assert (found.copies, found.copied) == (2, 3 * 200)
    assert (found.rows[0].name, found.rows[0].flops) == ("_gemm_mha_v2_myl0_5", 100 * 400 * OPERATIONS_PER_BYTE)
    total = 100 * 400 + 200 + 5 * 400 + 400 + 2 * 300  # in bytes, of which 400 are read and written by most layers
    assert [row.share for row in found.rows[:2]] == pytest.approx([100 * 400 / total, 400 / total])


def test_a_real_engine(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The report of an engine has the weights of its file and the operations of its graph, without a GPU."""
    command = ["build", str(bundle), "--backend", "tensorrt_rtx", "--graph", "context", "--graph", "blend"]
    assert main([*command, "--batch", "2"]) == 0
    capsys.readouterr()
    assert main(["inspect", str(bundle), "--graph", "context", "--json"]) == 0
    (report,) = json.loads(capsys.readouterr().out)
    rows = report["fusion"]["rows"]
    model = onnx.load(bundle / "context.onnx")
    matrices = [np.prod(t.dims) for t in model.graph.initializer if len(t.dims) == 2]  # each is multiplied with once
    tokens = 2 * 2 * 77  # at the optimum of the profile
    assert report["fusion"]["flops"] == 2 * tokens * sum(matrices)
    assert sum(row["flops"] for row in rows) == report["fusion"]["flops"]
    assert {node.name for node in model.graph.node if node.op_type == "MatMul"} <= {n for r in rows for n in r["nodes"]}
    assert main(["inspect", str(bundle), "--engine", report["engine"]["file"]]) == 0
    text = capsys.readouterr().out
    assert text.startswith("context n=1:4:16 S=77: tensorrt_rtx 1.7")
    assert "copies and casts: " in text
    assert main(["verify", str(bundle), "--hashes-only"]) == 0


def test_every_graph_can_be_inspected(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Operations are counted at the sizes of each profile: the encoder's convolutions at those of pixels."""
    with machine() as gpu:
        gpu.build(bundle, "tensorrt", {"height": ["96"], "width": ["64:128:192"]})
    assert main(["inspect", str(bundle), "--json"]) == 0
    found = {one["engine"]["graph"]: one for one in json.loads(capsys.readouterr().out)}
    assert found.keys() == Bundle.open(bundle).manifest.graphs.keys()
    assert {name: one["problem"] for name, one in found.items()} == dict.fromkeys(found)
    pixels = 96 * 128
    graph = onnx.load(bundle / "vae_encoder.onnx", load_external_data=False).graph
    node = next(node for node in graph.node if node.op_type == "Conv")
    stored = {cast.output[0]: cast.input[0] for cast in graph.node if cast.op_type == "Cast"}
    weight = stored.get(node.input[1], node.input[1])
    shape = next(tensor.dims for tensor in graph.initializer if tensor.name == weight)
    counted = {node: row["flops"] for row in found["vae_encoder"]["fusion"]["rows"] for node in row["nodes"]}
    assert counted[node.name] == 2 * pixels * np.prod(shape)


def test_layers_go_with_their_engine(bundle: Path) -> None:
    with machine() as gpu:
        (first,) = gpu.build(bundle, "tensorrt", graphs=["blend"])
        (second,) = gpu.build(bundle, "tensorrt", {"batch": ["2"]}, graphs=["blend"])
    with machine({"tensorrt": "11.1.0.106"}) as gpu:
        gpu.build(bundle, "tensorrt", graphs=["blend"])
    listed = EngineList.of_bundle(Bundle.open(bundle))
    assert len({record.layers for record in listed.engines}) == 3
    assert all(path.is_file() for record in listed.engines if (path := listed.layers_path(record)))
    assert first.record.layers == first.record.file.replace(".plan", ".layers.json")
    assert {f"engines/{p.name}" for p in (bundle / "engines").iterdir()} == {
        name for record in listed.engines for name in (record.file, record.layers)
    }
    assert second.record.layers in listed.files


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--graph", "blend"], "has no engines of TensorRT. Build them: latentrt build"),
        (["--graph", "blendd"], "unknown graph 'blendd'; did you mean 'blend'"),
    ],
)
def test_a_bundle_without_engines(
    bundle: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(bundle), *arguments]) == 1
    assert message in capsys.readouterr().err


def test_engines_that_say_nothing(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One whose layers were not recorded, and one of another export."""
    with machine() as gpu:
        gpu.build(bundle, "tensorrt", graphs=["blend", "time"])
    manifest = json.loads((bundle / "bundle.json").read_text())
    blend, time = manifest["engines"]
    del blend["layers"]
    time["onnx_sha256"] = "0" * 64
    (bundle / "bundle.json").write_text(json.dumps(manifest))
    assert main(["inspect", str(bundle)]) == 1
    text = capsys.readouterr().out
    assert "its layers were not recorded; build it again" in text
    assert "it was built from another time.onnx" in text
    assert main(["inspect", str(bundle), "--engine", "denoise"]) == 1
    assert "no such engine" in capsys.readouterr().err
