"""Operations and bytes counted from ONNX files, against closed forms and PyTorch's own counter."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from support.exports import SHAPES
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common.onnx_cost import bundle_costs
from latentrt.export.build.onnx_cost import Cost, cost_of, evaluated
from latentrt.runtime import Bundle


def saved(
    path: Path, node: Any, inputs: dict[str, list[Any]], output: list[Any], weights: dict[str, list[int]]
) -> Path:
    """Save a graph of one node, whose output is named "out"."""
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT16, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT16, output)],
        [helper.make_tensor(name, TensorProto.FLOAT16, s, np.zeros(s, np.float16)) for name, s in weights.items()],
    )
    onnx.save(helper.make_model(graph), path)
    return path


def test_a_product(tmp_path: Path) -> None:
    node = helper.make_node("MatMul", ["x", "w"], ["out"])
    file = saved(tmp_path / "m.onnx", node, {"x": ["B", "2*(h//2)", 5]}, ["B", "2*(h//2)", 7], {"w": [5, 7]})
    cost = cost_of(file, {"B": 3, "h": 9})
    moved = 2 * (3 * 8 * 5 + 3 * 8 * 7)
    assert cost == Cost({"MatMul": 2 * 3 * 8 * 5 * 7}, weights=2 * 35, edges=moved, activations=moved)
    assert cost.seconds(1.0, 1e9) == 2 * 3 * 8 * 5 * 7
    assert cost.seconds(1e12, 1.0) == moved + 70


@pytest.mark.parametrize(("transposed", "given"), [(0, [4, 6]), (1, [6, 4])])
def test_gemm(tmp_path: Path, transposed: int, given: list[int]) -> None:
    node = helper.make_node("Gemm", ["x", "w", "b"], ["out"], transA=transposed)
    file = saved(tmp_path / "g.onnx", node, {"x": given}, [4, 9], {"w": [6, 9], "b": [9]})
    assert cost_of(file, {}).flops == {"Gemm": 2 * 4 * 6 * 9}


def test_a_convolution_in_groups(tmp_path: Path) -> None:
    node = helper.make_node("Conv", ["x", "w"], ["out"], group=2, strides=[2, 2], pads=[1, 1, 1, 1])
    file = saved(tmp_path / "c.onnx", node, {"x": [2, 6, 10, 8]}, [2, 4, 5, 4], {"w": [4, 3, 3, 3]})
    with FlopCounterMode(display=False) as counter:
        torch.nn.functional.conv2d(torch.zeros(2, 6, 10, 8), torch.zeros(4, 3, 3, 3), stride=2, padding=1, groups=2)
    assert cost_of(file, {}).flops == {"Conv": counter.get_total_flops()}


@pytest.mark.parametrize("folded", [False, True])
def test_attention(tmp_path: Path, folded: bool) -> None:
    heads, queries, keys, width, values = 3, 10, 77, 8, 6
    if folded:
        shapes = {"q": [2, queries, heads * width], "k": [2, keys, heads * width], "v": [2, keys, heads * values]}
        output = [2, queries, heads * values]
    else:
        shapes = {"q": [2, heads, queries, width], "k": [2, heads, keys, width], "v": [2, heads, keys, values]}
        output = [2, heads, queries, values]
    more = {"q_num_heads": heads, "kv_num_heads": heads} if folded else {}
    node = helper.make_node("Attention", ["q", "k", "v"], ["out"], **more)
    file = saved(tmp_path / "a.onnx", node, shapes, output, {})
    assert cost_of(file, {}).flops == {"Attention": 2 * 2 * heads * queries * keys * (width + values)}


def test_a_whole_unet_is_what_pytorch_counts() -> None:
    """`time`, `context` and `denoise` together, at another size and batch than at export."""
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(SHAPES.checkpoint / "unet", local_files_only=True)
    sizes = {"B": 3, "G": 2, "h": 24, "w": 8, "S": 77}
    width = unet.config.cross_attention_dim
    # Attention as products, as the counter does not know the fused kernel of the CPU.
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        unet(torch.zeros(6, 4, 24, 8), 5.0, torch.zeros(6, 77, width))
    costs = bundle_costs(Bundle.open(SHAPES.bundle), sizes)
    ours = sum(sum(costs[name].flops.values()) for name in ("time", "context", "denoise"))
    assert ours == counter.get_total_flops()
    stored = Bundle.open(SHAPES.bundle).manifest.files
    assert costs["denoise"].weights == pytest.approx(stored["denoise.onnx.data"].size, rel=0.02)


def test_dimensions() -> None:
    assert evaluated("(((h - 1)//4)) + 1", {"h": 17}) == 5
    for wrong in ("h", "abs(n)", "n**2", "n/2", "'n'"):
        with pytest.raises(ValueError, match="cannot evaluate"):
            evaluated(wrong, {"n": 4})


def test_a_missing_shape_is_an_error(tmp_path: Path) -> None:
    nodes = [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("MatMul", ["y", "w"], ["out"])]
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "two", [info("x", 1, [2, 3])], [info("out", 1, [2, 4])], [helper.make_tensor("w", 1, [3, 4], [0.0] * 12)]
    )
    onnx.save(helper.make_model(graph), tmp_path / "two.onnx")
    with pytest.raises(ValueError, match="has no shape for 'y'"):
        cost_of(tmp_path / "two.onnx", {})
