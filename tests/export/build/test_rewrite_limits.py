"""What CUDA kernels of ONNX Runtime's own operators take, at the widths of real models, and what is left to others."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from support.contrib_ops import CONTRIB_OPS
from support.rewrites import ON_CUDA, OWN, Array, operators, rewritten, run, worst


def layer(
    *,
    width: int = 320,
    dtype: int = TensorProto.FLOAT16,
    approximate: str = "none",
    gated: int = 1,
    bias: bool = True,
    more: Sequence[str] = (),
    skip: tuple[int | str, ...] | None = None,
    normalized: bool = False,
    axis: int = -1,
) -> ir.Model:
    """x -> GEGLU -> linear -> + skip (-> layer norm): a feed-forward layer of `width` channels in and out.

    `gated` is the half that GELU is computed of; `more` are inner values that are outputs, too.
    """
    node, array = helper.make_node, np.random.default_rng(3).standard_normal
    kind = helper.tensor_dtype_to_np_dtype(dtype)
    inner = 4 * width
    sizes = {"W1": (width, 2 * inner), "b1": (2 * inner,), "W2": (inner, width), "b2": (width,)}
    sizes |= {"gamma": (width,), "beta": (width,)}
    weights = [
        onnx.numpy_helper.from_array((array(size) / np.sqrt(size[0])).astype(kind), name)
        for name, size in sizes.items()
        if bias or name != "b1"
    ]
    halves = ["left", "right"]
    nodes = [node("MatMul", ["x", "W1"], ["m1"])]
    nodes += [node("Add", ["m1", "b1"], ["both"])] if bias else []
    nodes += [
        node("Split", ["both" if bias else "m1"], halves, axis=-1, num_outputs=2),
        node("Gelu", [halves[gated]], ["gelu"], approximate=approximate),
        node("Mul", [halves[1 - gated], "gelu"], ["gate"]),
        node("MatMul", ["gate", "W2"], ["m2"]),
        node("Add", ["b2", "m2"], ["out"]),
        node("Add", ["skip", "out"], ["y"]),
    ]
    nodes += [node("LayerNormalization", ["y", "gamma", "beta"], ["z"], axis=axis)] if normalized else []
    shape = ("n", "l", width)
    shapes = {"x": shape, "skip": skip or shape, "y": shape, "m2": shape, "out": shape, "gate": ("n", "l", inner)}
    shapes |= dict.fromkeys(("m1", "both"), ("n", "l", 2 * inner))
    shapes |= dict.fromkeys(("left", "right", "gelu"), ("n", "l", inner))
    infos = {name: helper.make_tensor_value_info(name, dtype, size) for name, size in shapes.items()}
    outputs = [helper.make_tensor_value_info("z", dtype, shape)] if normalized else []
    outputs += [infos[name] for name in (*(() if normalized and "y" not in more else ("y",)), *set(more) - {"y"})]
    graph = helper.make_graph(nodes, "g", [infos["x"], infos["skip"]], outputs, weights)
    known = {value.name for value in (*graph.input, *graph.output)}
    graph.value_info.extend(info for name, info in infos.items() if name not in known)
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10))


def layer_feeds(width: int, dtype: Any) -> dict[str, Array]:
    random = np.random.default_rng(8)
    return {name: random.standard_normal((2, 7, width)).astype(dtype) for name in ("x", "skip")}


@pytest.mark.parametrize("width", [320, 640])
@pytest.mark.parametrize(("dtype", "tolerance"), [(TensorProto.FLOAT, 2e-6), (TensorProto.FLOAT16, 4e-3)])
@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("more", [(), ("y",)])
def test_feed_forward_layers_of_real_width(
    width: int, dtype: int, tolerance: float, normalized: bool, more: tuple[str, ...]
) -> None:
    model = layer(width=width, dtype=dtype, normalized=normalized, more=more)
    feeds = layer_feeds(width, helper.tensor_dtype_to_np_dtype(dtype))
    expected = run(ir.to_proto(model).SerializeToString(), feeds)
    assert rewritten(model, ON_CUDA) == 2
    last = "SkipLayerNormalization" if normalized else "BiasAdd"
    own = [f"{OWN}.{op}" for op in ("BiasSplitGelu", last)]
    assert operators(model) == {"MatMul": 2, own[0]: 1, own[1]: 1}
    onnx.checker.check_model(ir.to_proto(model))
    data = ir.to_proto(model).SerializeToString()
    assert worst(run(data, feeds), expected) < tolerance
    assert worst(ReferenceEvaluator(ir.to_proto(model), new_ops=CONTRIB_OPS).run(None, feeds), expected) < tolerance


@pytest.mark.parametrize(
    ("rewrite", "facts"),
    [
        ("bias_split_gelu", {"width": 160}),
        ("bias_split_gelu", {"approximate": "tanh"}),
        ("bias_split_gelu", {"gated": 0}),
        ("bias_split_gelu", {"bias": False}),
        ("bias_split_gelu", {"dtype": TensorProto.BFLOAT16}),
        ("bias_split_gelu", {"more": ["left"]}),
        ("bias_split_gelu", {"more": ["right"]}),
        ("bias_split_gelu", {"more": ["gelu"]}),
        ("bias_split_gelu", {"more": ["both"]}),
        ("bias_add", {"width": 960}),
        ("bias_add", {"dtype": TensorProto.BFLOAT16}),
        ("bias_add", {"skip": (1, 1, 320)}),
        ("bias_add", {"skip": (1, "l", 320)}),
        ("bias_add", {"more": ["out"]}),
        ("skip_layer_norm", {"normalized": True, "dtype": TensorProto.BFLOAT16}),
        ("skip_layer_norm", {"normalized": True, "skip": (1, 1, 320)}),
        ("skip_layer_norm", {"normalized": True, "axis": 0}),
        ("skip_layer_norm", {"normalized": False}),
    ],
)
def test_what_kernels_refuse_is_left(rewrite: str, facts: dict[str, Any]) -> None:
    model = layer(**facts)
    before = [node.op_type for node in model.graph]
    assert rewritten(model, [rewrite]) == 0
    assert [node.op_type for node in model.graph] == before
    assert OWN not in model.opset_imports


def test_a_bias_with_another_use_stays_outside_of_the_norm() -> None:
    model = layer(normalized=True, more=["out"])
    assert rewritten(model, ["skip_layer_norm"]) == 1
    (norm,) = (node for node in model.graph if node.op_type == "SkipLayerNormalization")
    assert len(norm.inputs) == 4
    feeds = layer_feeds(320, np.float16)
    expected = run(ir.to_proto(layer(normalized=True, more=["out"])).SerializeToString(), feeds)
    assert worst(run(ir.to_proto(model).SerializeToString(), feeds), expected) < 4e-3
