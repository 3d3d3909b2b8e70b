"""Float32 parts of half-precision graphs: weights that overflow float16, run with ONNX's reference evaluator."""

from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from benchmarks.quality.rounded_bundle import round_results
from latentrt.export.graphs.onnx_export import TensorInput, onnx_from_module
from latentrt.export.graphs.precision import Float32Attention, keep_unet_islands
from latentrt.export.graphs.vae import VAEDecoderGraph, decoder_inputs

LARGEST = 65504.0  # of float16


def computed(module: torch.nn.Module, example: Any, outputs: list[str], values: dict[str, Any]) -> list[NDArray[Any]]:
    """Outputs of the exported graph, with each operation in the graph's dtype."""
    model = ir.serde.serialize_model(onnx_from_module(module, example, outputs, opset=23))
    with np.errstate(all="ignore"):
        found: list[NDArray[Any]] = ReferenceEvaluator(model).run(None, values)
    return found


class SelfAttention(torch.nn.Module):
    """An attention of a UNet's transformer block, with the given processor."""

    def __init__(self, processor: Any, gain: float) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.attention = Attention(64, heads=4, dim_head=16, processor=processor).eval()
        for linear in (self.attention.to_q, self.attention.to_k):
            linear.weight.data *= gain

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.attention(hidden)


@pytest.mark.slow
@torch.no_grad()
def test_attention_that_overflows_in_float16_is_computed_in_float32() -> None:
    """Queries and keys fit float16, their products do not. All three modules have weights rounded to float16."""
    gain = 500.0
    hidden = torch.randn(2, 30, 64, generator=torch.Generator().manual_seed(9)).half()
    exact = SelfAttention(AttnProcessor2_0(), gain).half().float()
    queries, keys = exact.attention.to_q(hidden.float()), exact.attention.to_k(hidden.float())
    assert max(queries.abs().max(), keys.abs().max()) < LARGEST
    assert (queries[0, :, :16] @ keys[0, :, :16].T).abs().max() / 4 > LARGEST
    example = [TensorInput("hidden", hidden, {0: "n"})]
    plain, island = (
        computed(SelfAttention(processor, gain).half(), example, ["out"], {"hidden": hidden.numpy()})[0]
        for processor in (AttnProcessor2_0(), Float32Attention())
    )
    expected = exact(hidden.float()).numpy()
    assert not np.isfinite(plain).all()
    assert np.isfinite(island).all()
    # Softmax of such large numbers selects one input; for near ties, the rounding of q and k decides which.
    rows = np.linalg.norm(island - expected, axis=2) < 0.01 * np.linalg.norm(expected, axis=2)
    assert rows.mean() > 0.9


@pytest.mark.parametrize(
    ("dtype", "upcast", "island"),
    [
        (torch.float16, True, True),
        (torch.float16, False, False),
        (torch.bfloat16, True, False),  # has the range of float32
        (torch.float32, True, False),
    ],
)
def test_attention_is_an_island_where_the_config_asks_for_it(dtype: torch.dtype, upcast: bool, island: bool) -> None:
    unet = UNet2DConditionModel(
        block_out_channels=(16,),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        cross_attention_dim=8,
        attention_head_dim=2,
        norm_num_groups=8,
        upcast_attention=upcast,
    ).to(dtype)
    keep_unet_islands(unet)
    assert {isinstance(processor, Float32Attention) for processor in unet.attn_processors.values()} == {island}
    hidden, text = torch.randn(2, 9, 16).to(dtype), torch.randn(2, 77, 8).to(dtype)
    attention = unet.mid_block.attentions[0].transformer_blocks[0].attn2
    with torch.no_grad():
        got = attention(hidden, text)
        attention.set_processor(AttnProcessor2_0())
        torch.testing.assert_close(got, attention(hidden, text), rtol=0, atol=2e-3 if island else 0)


@pytest.mark.slow
@torch.no_grad()
def test_a_vae_that_overflows_in_float16_is_decoded_in_float32() -> None:
    torch.manual_seed(6)
    vae = AutoencoderKL(
        block_out_channels=(16, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=8,
    ).eval()
    # As in Stable Diffusion XL's VAE: large activations between norms, whose scale the next norm removes.
    vae.decoder.conv_in.weight.data *= 3e5
    latents = np.random.default_rng(1).standard_normal((1, 4, 6, 5)).astype(np.float32)
    example = decoder_inputs(dict(vae.config))
    expected = vae.decode(torch.from_numpy(latents) / vae.config.scaling_factor).sample
    assert expected.abs().max() < LARGEST < vae.decoder.conv_in(torch.from_numpy(latents)).abs().max()
    _, bad = computed(VAEDecoderGraph(vae.half()), example, ["images", "nonfinite"], {"latents": latents})
    assert bad[0] == 3 * 12 * 10
    images, bad = computed(VAEDecoderGraph(vae.float()), example, ["images", "nonfinite"], {"latents": latents})
    assert bad[0] == 0
    # The weights were rounded to float16 by `vae.half()`.
    bytes_of = (expected * 0.5 + 0.5).clamp(0, 1).mul(255).round().permute(0, 2, 3, 1).numpy()
    assert np.abs(images - bytes_of).max() <= 4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.no_grad()
def test_a_rounded_graph_rounds_each_result(dtype: torch.dtype) -> None:
    """Used by benchmarks.quality.family_precision: equals PyTorch's computation in half precision, step by step."""
    torch.manual_seed(8)
    module = torch.nn.Sequential(torch.nn.Linear(24, 40), torch.nn.Sigmoid(), torch.nn.Linear(40, 5)).to(dtype)
    x = torch.randn(7, 24).to(dtype)
    model = onnx_from_module(Positional(module), [TensorInput("x", x, {0: "n"})], ["y"], opset=18)
    round_results(model.graph)
    serialized = ir.serde.serialize_model(model).SerializeToString()
    (got,) = onnxruntime.InferenceSession(serialized).run(["y"], {"x": x.float().numpy()})
    exact = module.float()(x.float())
    expected = module.to(dtype)(x).float()
    assert np.array_equal(got, torch.from_numpy(got).to(dtype).float().numpy())
    step = float(torch.finfo(dtype).eps) * float(expected.abs().max())
    np.testing.assert_allclose(got, expected.numpy(), rtol=0, atol=2 * step)
    assert np.abs(got - exact.numpy()).max() > 0.1 * step


class Positional(torch.nn.Module):
    """A module whose argument is named `x`."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.module(x)
        return y
