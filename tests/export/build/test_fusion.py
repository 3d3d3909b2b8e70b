"""TensorRT for RTX fuses what it should: real engines, built without a GPU, of UNets as wide as public models."""

from pathlib import Path

import onnx
import pytest
from support.fusion_models import denoise_graph, plant_cast_before_silu, plant_written_out_attention, shapes_of

from benchmarks.common.made_up_ranges import quantize_graph
from latentrt.export.build.fusible import fusible_parts
from latentrt.export.build.fusion import Fusion, fusion_of
from latentrt.export.build.layers import layers_from_text
from latentrt.export.build.onnx_cost import node_flops
from latentrt.export.build.trt_builder import TrtBuilder
from latentrt.export.build.trt_options import RTX_CAPABILITIES, BuildOptions
from latentrt.export.quantize.forms import form_of

pytestmark = pytest.mark.slow
SIZES = {"B": 1, "G": 2, "h": 64, "w": 64, "S": 77}


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """`denoise.onnx` of each model."""
    return {name: denoise_graph(tmp_path_factory.mktemp(name), name) for name in ("sd15", "sdxl")}


def fused(path: Path, capability: str, *, counted: bool = True) -> Fusion:
    library = TrtBuilder("tensorrt_rtx", ())
    options = library.check(BuildOptions(compute_capabilities=(capability,)))
    built = library.engine_from_onnx(path, shapes_of(path, SIZES), options, fused_attention=True)
    graph = onnx.load(path, load_external_data=False).graph
    return fusion_of(layers_from_text(built.layers), fusible_parts(graph), node_flops(graph, SIZES) if counted else {})


@pytest.mark.parametrize(("name", "attentions", "norms", "gelus"), [("sd15", 6, 19, 3), ("sdxl", 4, 13, 2)])
def test_attention_norms_and_geglu_are_one_kernel_each(
    graphs: dict[str, Path], name: str, attentions: int, norms: int, gelus: int
) -> None:
    for capability in RTX_CAPABILITIES:
        found = fused(graphs[name], capability)
        for tally, parts in ((found.attention, attentions), (found.group_norm, norms), (found.geglu, gelus)):
            assert (tally.parts, tally.others) == (parts, ()), capability
        # Every operation belongs to a layer, and those with most of them are convolutions and attention.
        assert sum(row.flops for row in found.rows) == found.flops
        assert sum(row.share for row in found.rows) == pytest.approx(1)
        assert {row.precision for row in found.rows if row.flops > found.flops / 100} == {"fp16"}


@pytest.mark.parametrize("to", ["fp8", "int8"])
@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_quantized_products_are_in_8_bits(graphs: dict[str, Path], name: str, to: str) -> None:
    """Attention and norms stay fused. GELUs do not: their kernel quantizes what the next product reads."""
    path = graphs[name].with_name(f"{to}.onnx")
    layers = quantize_graph(graphs[name], path, form_of(to, "tensorrt"))
    plain, found = (fused(one, "8.9") for one in (graphs[name], path))
    assert (found.quantized.parts, found.quantized.others) == (layers, ())
    assert plain.quantized.parts == 0
    assert (found.attention, found.group_norm) == (plain.attention, plain.group_norm)
    assert found.flops == plain.flops
    if to == "fp8":  # with int8, TensorRT for RTX 1.7 has convolutions write float32
        assert {row.precision for row in found.rows if row.flops > found.flops / 100} == {"fp16"}


def test_a_planted_fault_is_seen(graphs: dict[str, Path]) -> None:
    """Attention in float32 that is written out, and a cast between a norm and its SiLU."""
    model = onnx.load(graphs["sd15"], load_external_data=False)
    plant_written_out_attention(model)
    plant_cast_before_silu(model)
    planted = graphs["sd15"].with_name("planted.onnx")
    onnx.save(model, planted)
    found = fused(planted, "8.9", counted=False)
    assert found.attention.parts == 6
    assert [name.rpartition("_")[2] for name in found.attention.others] == ["Softmax"]
    assert found.group_norm.parts == 19
    assert len(found.group_norm.others) == 1
