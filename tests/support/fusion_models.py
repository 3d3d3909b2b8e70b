"""Small UNets whose attention and norms have the widths of public models, as `denoise` graphs in float16."""

import math
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import torch
from onnx import TensorProto, helper

from latentrt.export.checkpoint.families import time_inputs
from latentrt.export.graphs import unet as unet_graph
from latentrt.export.graphs.cut import cut_denoiser
from latentrt.export.graphs.fuse import fuse_denoise
from latentrt.export.graphs.onnx_export import onnx_from_module
from latentrt.export.graphs.onnx_files import save_graph

# The heads of SD 1.5 (40, 80 and 160 channels) and of SDXL (64). Numbers of channels are multiples of 64, as in public
# models: for others TensorRT for RTX 1.7 has no kernel of a whole norm. Few attentions, so that the export is quick.
MODELS: dict[str, dict[str, Any]] = {
    "sd15": {
        "block_out_channels": (320, 320, 320),
        "down_block_types": ("CrossAttnDownBlock2D",) * 3,
        "up_block_types": ("UpBlock2D",) * 3,
        "mid_block_type": None,
        "attention_head_dim": (8, 4, 2),
        "cross_attention_dim": 64,
    },
    "sdxl": {
        "block_out_channels": (320, 320),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D"),
        "mid_block_type": None,
        "attention_head_dim": (5, 5),
        "cross_attention_dim": 64,
        "use_linear_projection": True,
        "transformer_layers_per_block": (1, 2),
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 24 + 6 * 8,
    },
}


def denoise_graph(folder: Path, name: str) -> Path:
    """Export a random UNet; returns the path of `denoise.onnx`."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(3)
    module = UNet2DConditionModel(sample_size=64, layers_per_block=1, **MODELS[name]).half().eval()
    inputs = unet_graph.inputs(dict(module.config), torch.float16, 77)
    model = onnx_from_module(unet_graph.UNetGraph(module), inputs, ["prediction"], opset=23)
    of_time = {"timesteps", *(more.name for more in time_inputs(dict(module.config)))}
    cut = cut_denoiser(model, time_inputs=of_time, context_inputs={"hidden_states"})
    path = folder / "denoise.onnx"
    save_graph(fuse_denoise(cut.loop, channels=4), path, compact=False)
    return path


def shapes_of(path: Path, sizes: dict[str, int]) -> dict[str, list[list[int]]]:
    """Minimum, optimum and maximum shape of each input, all at these sizes."""
    inputs = ir.load(path).graph.inputs
    return {str(value.name): [[_size(d, sizes) for d in value.shape or ()]] * 3 for value in inputs}


def _size(dimension: Any, sizes: dict[str, int]) -> int:
    if isinstance(dimension, int):
        return dimension
    return math.prod(sizes[factor] if factor in sizes else int(factor) for factor in str(dimension.value).split("*"))


def plant_written_out_attention(model: onnx.ModelProto) -> None:
    """Write the first attention out as products and a softmax in float32; without its scale."""
    graph = model.graph
    at, node = next((i, n) for i, n in enumerate(graph.node) if n.op_type == "Attention")
    query, key, value = (f"planted_{i}" for i in range(3))
    make = helper.make_node
    written = [
        *(make("Cast", [name], [f"planted_{i}"], to=TensorProto.FLOAT) for i, name in enumerate(node.input[:3])),
        make("Transpose", [key], ["planted_turned"], perm=[0, 1, 3, 2]),
        make("MatMul", [query, "planted_turned"], ["planted_scores"]),
        make("Softmax", ["planted_scores"], ["planted_shares"], axis=-1),
        make("MatMul", ["planted_shares", value], ["planted_mixed"]),
        make("Cast", ["planted_mixed"], [node.output[0]], to=TensorProto.FLOAT16),
    ]
    _replace(graph, at, at + 1, written)


def plant_cast_before_silu(model: onnx.ModelProto) -> None:
    """Compute the SiLU behind the first norm in float32."""
    graph = model.graph
    at, sigmoid = next((i, n) for i, n in enumerate(graph.node) if n.op_type == "Sigmoid")
    product = next(n for n in graph.node if n.op_type == "Mul" and sigmoid.output[0] in n.input)
    normed, out = sigmoid.input[0], product.output[0]
    make = helper.make_node
    written = [
        make("Cast", [normed], ["planted_normed"], to=TensorProto.FLOAT),
        make("Sigmoid", ["planted_normed"], ["planted_sigmoid"]),
        make("Mul", ["planted_normed", "planted_sigmoid"], ["planted_silu"]),
        make("Cast", ["planted_silu"], [out], to=TensorProto.FLOAT16),
    ]
    graph.node.remove(product)
    _replace(graph, at, at + 1, written)


def _replace(graph: onnx.GraphProto, start: int, end: int, written: list[onnx.NodeProto]) -> None:
    for i, node in enumerate(written):
        node.name = f"planted_{start + i}_{node.op_type}"
    nodes = [*graph.node[:start], *written, *graph.node[end:]]
    del graph.node[:]
    graph.node.extend(nodes)
