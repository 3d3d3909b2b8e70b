"""Attention without casts around it: the values stay, and only where fused kernels exist."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper
from support.exports import Exported

from latentrt.export.build.ort_graphs import build_ort_graphs, chosen_rewrites
from latentrt.export.build.rewrites.attention_casts import drop_attention_casts
from latentrt.runtime.arrays import DTYPES
from latentrt.runtime.bundle import Bundle, shape_at

SIZES = {"B": 2, "G": 2, "h": 10, "w": 6, "S": 77}


def model(
    width: int, dtype: int = TensorProto.FLOAT16, casts: int = 3, moves: tuple[str, ...] = (), used: bool = False
) -> onnx.ModelProto:
    """Attention on operands (1, 2, 5, width), of which some are cast to float32; the output is cast back.

    `moves` are operators between the output and its cast; with `used`, the output in float32 has another use.
    """
    nodes, names = [], []
    for i, name in enumerate(("query", "key", "value")):
        nodes += [helper.make_node("Cast", [name], [f"{name}_32"], to=TensorProto.FLOAT)] if i < casts else []
        names.append(f"{name}_32" if i < casts else name)
    nodes.append(helper.make_node("Attention", names, ["mixed"]))
    last = "mixed"
    for move in moves:
        nodes.append(helper.make_node(move, [last], [last := f"{last}.{move}"]))
    nodes.append(helper.make_node("Cast", [last], ["result"], to=dtype))
    if used:
        nodes.append(helper.make_node("Neg", ["mixed"], ["negative"]))
    operands = [
        helper.make_tensor_value_info(name, dtype if i < casts else TensorProto.FLOAT, [1, 2, 5, width])
        for i, name in enumerate(("query", "key", "value"))
    ]
    results = [helper.make_tensor_value_info("result", dtype, None)]
    results += [helper.make_tensor_value_info("negative", TensorProto.FLOAT, None)] if used else []
    mixed = helper.make_tensor_value_info("mixed", TensorProto.FLOAT, [1, 2, 5, width])
    graph = helper.make_graph(nodes, "attention", operands, results, value_info=[
        mixed, *(helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2, 5, width]) for name in names),
    ])  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)


@pytest.mark.parametrize(
    ("moves", "used", "left"),
    [
        ((), False, ["Attention"]),
        (("Transpose",), False, ["Attention", "Transpose"]),
        (("Neg",), False, ["Attention", "Cast", "Neg", "Cast"]),  # which is computed in float32
        ((), True, ["Attention", "Cast", "Cast", "Neg"]),
    ],
)
def test_it_computes_the_same(moves: tuple[str, ...], used: bool, left: list[str]) -> None:
    before = model(64, moves=moves, used=used)
    after = ir.from_proto(before)
    assert drop_attention_casts(after) == 1
    assert [node.op_type for node in after.graph] == left
    random = np.random.default_rng(5)
    feeds = {n: random.standard_normal((1, 2, 5, 64)).astype(np.float16) for n in ("query", "key", "value")}
    (expected, *_), (got, *_) = (
        onnxruntime.InferenceSession(proto.SerializeToString()).run(None, feeds)
        for proto in (before, ir.to_proto(after))
    )
    assert got.dtype == expected.dtype == np.float16
    assert np.abs(got.astype(np.float32) - expected).max() < 4e-3


@pytest.mark.parametrize(
    ("width", "casts"),
    [
        (512, 3),  # of a VAE
        (60, 3),
        (64, 2),  # the value is float32
        (64, 0),
    ],
)
def test_without_a_kernel_everything_stays(width: int, casts: int) -> None:
    graph = ir.from_proto(model(width, casts=casts))
    before = [node.op_type for node in graph.graph]
    assert drop_attention_casts(graph) == 0
    assert [node.op_type for node in graph.graph] == before


@pytest.mark.slow
def test_stable_diffusion_2_in_fp16(exported: Callable[[str], Exported], tmp_path: Path) -> None:
    bundle = Bundle.open(exported("sd2-fp16").bundle)
    graph = bundle.graph("denoise")
    original = bundle.file(graph.file)
    rewritten = ir.load(original)
    attentions = [node.op_type for node in rewritten.graph].count("Attention")
    assert drop_attention_casts(rewritten) == attentions > 0
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(bundle.path))
    random = np.random.default_rng(2)
    feeds = {t.name: random.standard_normal(shape_at(t, SIZES)).astype(DTYPES[t.dtype].numpy) for t in graph.inputs}
    feeds["guidance_rescale"][:] = 0
    data = ir.to_proto(rewritten).SerializeToString()
    (got,) = onnxruntime.InferenceSession(data, options).run(None, feeds)
    (expected,) = onnxruntime.InferenceSession(original).run(None, feeds)
    assert np.abs(got - expected).max() < 1e-3 * np.abs(expected).max()
    built = list(build_ort_graphs(bundle.path, devices=["cuda"], engines=tmp_path, graphs=["denoise"]))
    assert [one.record.options for one in built] == [{", ".join(chosen_rewrites(["cuda"])["cuda"]): "com.microsoft"}]
