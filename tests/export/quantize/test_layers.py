"""Which layers are quantized: the rule looks at graphs alone, and agrees with the names that checkpoints give."""

from collections.abc import Callable

import onnx_ir as ir
import pytest
from support.exports import Exported

from latentrt.export.quantize.layers import (
    ATTENTION_INPUT,
    CONVOLUTION,
    FEED_FORWARD,
    LINEAR,
    Layer,
    chosen,
    find_layers,
)
from latentrt.runtime import InputError

NAMES = ["shapes", "sd1-fp32", "sdxl-fp32", "sd2-fp32-opset18", "sd2-fp16", "sd1-inpaint-fp32", "lcm-fp32"]


def kind_by_name(layer: Layer) -> str:
    if len(layer.shape) == 4:
        return CONVOLUTION
    if any(part in layer.name for part in (".to_q.", ".to_k.", ".to_v.", ".q_proj.", ".k_proj.", ".v_proj.")):
        return ATTENTION_INPUT
    return FEED_FORWARD if ".ff.net." in layer.name or ".mlp.fc" in layer.name else LINEAR


def layers_of(exported: Exported, graph: str) -> list[Layer]:
    return find_layers(ir.load(exported.bundle / f"{graph}.onnx").graph)


@pytest.mark.parametrize("name", NAMES)
def test_kinds_are_those_of_the_names(exported: Callable[[str], Exported], name: str) -> None:
    for graph in ("denoise", "text_encoder", "vae_decoder", "vae_encoder"):
        layers = layers_of(exported(name), graph)
        assert len(layers) > 10
        for layer in layers:
            assert layer.kind == kind_by_name(layer), layer.name


@pytest.mark.parametrize("name", NAMES)
def test_what_the_rule_keeps_is_known_by_name(exported: Callable[[str], Exported], name: str) -> None:
    layers = layers_of(exported(name), "denoise")
    by_reason = {layer.name: layer.kept for layer in layers if layer.kept}
    for layer in layers:
        reason = {"conv_in": "first layer", "conv_out": "last layer", "conv_shortcut": "shortcut"}
        expected = next((why for part, why in reason.items() if f".{part}." in layer.name), "")
        assert by_reason.get(layer.name, "") == expected, layer.name


def test_levels_add_kinds(exported: Callable[[str], Exported]) -> None:
    layers = layers_of(exported("sdxl-fp32"), "denoise")
    kinds = [{layer.kind for layer in chosen(layers, level)} for level in (1.0, 2.0, 2.5, 3.0)]
    assert kinds[0] == {CONVOLUTION}
    assert [len(some) for some in kinds] == [1, 2, 3, 4]
    assert kinds[1] - kinds[0] == {FEED_FORWARD}
    assert kinds[2] - kinds[1] == {ATTENTION_INPUT}
    with pytest.raises(InputError, match=r"level is 4; expected one of 1 \(convolution\), 2"):
        chosen(layers, 4.0)
