"""Ports of `denoise`: nothing where they are zero, and diffusers' own results where they are not."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from support.exports import SHAPES, Exported

from latentrt.export.write import ExportOptions, export_bundle
from latentrt.runtime import Pipeline
from latentrt.runtime.bundle import Bundle, shape_at
from latentrt.runtime.bundle.checks import faults
from latentrt.runtime.bundle.manifest import Manifest
from latentrt.runtime.errors import ExportError
from latentrt.runtime.goldens import relative_error
from latentrt.runtime.scheduler import REGISTERS

ALL = ("control", "t2i", "ip-adapter")
TOKENS = 5  # of a picture


def random_inputs(bundle: Bundle, rng: np.random.Generator, height: int, width: int) -> dict[str, Any]:
    sizes = {"B": 1, "G": 2, "h": height, "w": width, "S": 77, "T": TOKENS}
    inputs = {}
    for spec in bundle.graph("denoise").inputs:
        inputs[spec.name] = (0.3 * rng.standard_normal(shape_at(spec, sizes))).astype(np.float32)
    # The next state is the prediction of the second group.
    inputs["coefficients"][:] = 0
    inputs["coefficients"][0, 0, REGISTERS] = 1
    inputs["guidance"][:], inputs["guidance_rescale"][:] = (0, 1), 0
    return inputs


@dataclass(frozen=True)
class Case:
    """A bundle with ports, its UNet in diffusers, and the inputs of both."""

    bundle: Bundle
    unet: Any
    inputs: dict[str, Any]
    call: dict[str, Any]

    def predicted(self, **changed: Any) -> np.ndarray:
        file = self.bundle.file(self.bundle.graph("denoise").file)
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        prediction: np.ndarray = session.run(None, {**self.inputs, **changed})[0][0, 0]
        return prediction

    def expected(self, **more: Any) -> np.ndarray:
        with torch.no_grad():
            prediction: np.ndarray = self.unet(**self.call, **more).sample[1].numpy()
        return prediction

    def zeros(self, *prefixes: str) -> dict[str, Any]:
        return {name: np.zeros_like(array) for name, array in self.inputs.items() if name.startswith(prefixes)}

    def tensors(self, prefix: str) -> list[torch.Tensor]:
        return [torch.from_numpy(array) for name, array in sorted(self.inputs.items()) if name.startswith(prefix)]


@pytest.fixture(scope="module", params=["sd1-ports-fp32", "sdxl-ports-fp32"])
def case(request: pytest.FixtureRequest, exported: Callable[[str], Exported]) -> Case:
    from diffusers import UNet2DConditionModel

    checkpoint, out = exported(request.param).checkpoint, exported(request.param).bundle
    bundle = Bundle.open(out)
    unet = UNet2DConditionModel.from_pretrained(checkpoint / "unet").eval()
    rng = np.random.default_rng(31)
    inputs = random_inputs(bundle, rng, 18, 10)
    hidden = rng.standard_normal((2, 77, unet.config.cross_attention_dim)).astype(np.float32)
    call: dict[str, Any] = {
        "sample": torch.from_numpy(np.repeat(inputs["state"][:, 0], 2, 0)),
        "timestep": torch.tensor([421.0, 421.0]),
        "encoder_hidden_states": torch.from_numpy(hidden),
    }
    of_time = {"timesteps": np.array([421, 421], np.float32)}
    if request.param.startswith("sdxl"):
        pooled = next(spec.shape[1] for spec in bundle.graph("time").inputs if spec.name == "pooled")
        of_time["pooled"] = rng.standard_normal((2, int(pooled))).astype(np.float32)
        of_time["time_ids"] = np.array([[72, 40, 0, 0, 72, 40]] * 2, np.float32)
        added = {"text_embeds": of_time["pooled"], "time_ids": of_time["time_ids"]}
        call["added_cond_kwargs"] = {name: torch.from_numpy(array) for name, array in added.items()}
    with Pipeline.load(out, backend="onnxruntime", device="cpu") as pipe:
        inputs |= pipe._backend.engine("time").run(of_time)
        inputs |= pipe._backend.engine("context").run({"hidden_states": hidden})
    return Case(bundle, unet, inputs, call)


@pytest.mark.slow
def test_zeros_are_off(case: Case) -> None:
    expected = case.expected()
    assert relative_error(case.predicted(**case.zeros("residual_", "adapter_", "image_")), expected) < 1e-5
    # Without strength, keys and values may hold what they want.
    off = case.zeros("residual_", "adapter_", "image_strength")
    assert relative_error(case.predicted(**off), expected) < 1e-5
    assert relative_error(case.predicted(), expected) > 0.01


@pytest.mark.slow
def test_residuals_of_a_controlnet(case: Case) -> None:
    *down, middle = case.tensors("residual_")
    residuals = {"down_block_additional_residuals": tuple(down), "mid_block_additional_residual": middle}
    got = case.predicted(**case.zeros("adapter_", "image_"))
    assert relative_error(got, case.expected(**residuals)) < 1e-5
    assert relative_error(got, case.expected()) > 0.01
    wrong = {**residuals, "mid_block_additional_residual": 2 * middle}
    assert relative_error(got, case.expected(**wrong)) > 1e-3


@pytest.mark.slow
def test_features_of_a_t2i_adapter(case: Case) -> None:
    got = case.predicted(**case.zeros("residual_", "image_"))
    features = case.tensors("adapter_")
    assert relative_error(got, case.expected(down_intrablock_additional_residuals=features)) < 1e-5
    assert relative_error(got, case.expected()) > 0.01


@pytest.mark.slow
def test_pictures_of_an_ip_adapter(case: Case) -> None:
    """Keys and values from an adapter that diffusers loads, in its own attention."""
    unet, generator = case.unet, torch.Generator().manual_seed(9)
    width, embedding = unet.config.cross_attention_dim, 24
    plain = dict(unet.attn_processors)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    weights, number = {}, 1
    for name in plain:
        if name.endswith("attn2.processor"):
            channels = unet.get_submodule(name.removesuffix(".processor")).to_k.out_features
            for kind in "kv":
                weights[f"{number}.to_{kind}_ip.weight"] = normal(channels, width) * width**-0.5
            number += 2
    projection = {
        "proj.weight": 0.2 * normal(4 * width, embedding),
        "proj.bias": 0.1 * normal(4 * width),
        "norm.weight": 1 + 0.1 * normal(width),
        "norm.bias": 0.1 * normal(width),
    }
    unet._load_ip_adapter_weights([{"image_proj": projection, "ip_adapter": weights}])
    picture = normal(2, 1, embedding)
    try:
        processors = [one for name, one in unet.attn_processors.items() if name.endswith("attn2.processor")]
        for layer, processor in enumerate(processors):
            processor.scale = [0.3 + 0.1 * layer]
        with torch.no_grad():
            tokens = unet.encoder_hid_proj([picture])[0].flatten(1, 2)
            keys = [processor.to_k_ip[0](tokens).numpy() for processor in processors]
            values = [processor.to_v_ip[0](tokens).numpy() for processor in processors]
        added = {**case.call.get("added_cond_kwargs", {}), "image_embeds": [picture]}
        call = replace(case, call={**case.call, "added_cond_kwargs": added})
        expected = call.expected()
    finally:
        unet.set_attn_processor(plain)
        unet.encoder_hid_proj = None
        unet.config.encoder_hid_dim_type = None
    strength = np.tile(0.3 + 0.1 * np.arange(len(processors), dtype=np.float32), (2, 1))
    images = {f"image_key_{i:02d}": key for i, key in enumerate(keys)}
    images |= {f"image_value_{i:02d}": value for i, value in enumerate(values)}
    off = case.zeros("residual_", "adapter_")
    got = case.predicted(**off, **images, image_strength=strength)
    assert relative_error(got, expected) < 1e-5
    assert relative_error(case.predicted(**off, **images, image_strength=strength[:, ::-1].copy()), expected) > 1e-4
    assert relative_error(got, case.expected()) > 0.01


@pytest.mark.slow
@pytest.mark.parametrize(("name", "precision"), [("sd2-fp16", "fp16"), ("sd1-bf16", "bf16")])
def test_other_precisions(exported: Callable[[str], Exported], name: str, precision: str, tmp_path: Path) -> None:
    """The export compares with PyTorch at random ports."""
    bundle = export_bundle(
        exported(name).checkpoint, tmp_path / "out", ExportOptions(precision, ports=ALL, plans=False)
    )
    dtypes = {spec.name: spec.dtype for spec in bundle.graph("denoise").inputs}
    half = {"fp16": "float16", "bf16": "bfloat16"}[precision]
    assert {dtypes["residual_00"], dtypes["adapter_00"], dtypes["image_key_00"]} == {half}
    assert dtypes["image_strength"] == "float32"


def drawn(bundle: Path, backend: str) -> np.ndarray:
    """Latents that nothing steers."""
    with Pipeline.load(bundle, backend=backend, device="cpu") as pipe:
        size: dict[str, int] = {"height": 136, "width": 72, "num_images_per_prompt": 2}
        return pipe("a green star", seed=3, num_inference_steps=5, output_type="np", **size).latents


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sd1", "sdxl"])
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_bundle_with_ports_draws_as_one_without(
    exported: Callable[[str], Exported], family: str, backend: str
) -> None:
    """To the bit on ONNX Runtime; OpenVINO fuses otherwise."""
    without, bundle = exported(f"{family}-fp32").bundle, exported(f"{family}-ports-fp32").bundle
    manifest = Bundle.open(bundle).manifest
    assert (manifest.recipe.ports, manifest.format) == (ALL, "latentrt.bundle/2")
    got, expected = drawn(bundle, backend), drawn(without, backend)
    if backend == "onnxruntime":
        assert np.array_equal(got, expected)
    assert relative_error(got, expected) < 1e-5


@pytest.mark.slow
def test_each_port_alone_changes_nothing(sd1: Exported, tmp_path: Path) -> None:
    without = Bundle.open(sd1.bundle)
    inputs = random_inputs(without, np.random.default_rng(12), 24, 16)

    def predicted(bundle: Bundle) -> np.ndarray:
        specs = {spec.name: spec for spec in bundle.graph("denoise").inputs}
        sizes = {"B": 1, "G": 2, "h": 24, "w": 16, "S": 77, "T": TOKENS}
        zeros = {name: np.zeros(shape_at(spec, sizes), np.float32) for name, spec in specs.items()}
        session = onnxruntime.InferenceSession(
            bundle.file(bundle.graph("denoise").file), providers=["CPUExecutionProvider"]
        )
        prediction: np.ndarray = session.run(None, {**zeros, **inputs})[0]
        return prediction

    expected = predicted(without)
    for port in ALL:
        bundle = export_bundle(sd1.checkpoint, tmp_path / port, ExportOptions("fp32", plans=False, ports=(port,)))
        assert bundle.manifest.recipe.ports == (port,)
        assert bundle.manifest.format == "latentrt.bundle/2"
        assert np.array_equal(predicted(bundle), expected), port
        assert relative_error(drawn(bundle.path, "openvino"), drawn(sd1.bundle, "openvino")) < 1e-5, port


@pytest.mark.parametrize(
    ("ports", "message"), [(("contrl",), "unknown port 'contrl'.*control"), (("t2i", "t2i"), "named twice")]
)
def test_wrong_names(ports: tuple[str, ...], message: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=message):
        export_bundle(SHAPES.checkpoint, tmp_path / "out", ExportOptions(ports=ports))
    assert not [*tmp_path.iterdir()]


def with_inputs(*inputs: tuple[str, str, tuple[int | str, ...]], ports: tuple[str, ...]) -> Manifest:
    manifest = Bundle.open(SHAPES.bundle).manifest
    graph = manifest.graphs["denoise"]
    spec = type(graph.inputs[0])
    graph = replace(graph, inputs=(*graph.inputs, *(spec(*one) for one in inputs)))
    recipe = replace(manifest.recipe, ports=ports)
    return replace(manifest, recipe=recipe, graphs={**manifest.graphs, "denoise": graph})


HALF = ("B*G", 32, "h/2", "w/2")


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        (with_inputs(("residual_00", "float32", HALF), ports=()), "residual_00 is no output of context or time"),
        (with_inputs(("residual_01", "float32", HALF), ports=("control",)), "no tensors residual_00"),
        (with_inputs(ports=("control",)), "no tensors residual_00"),
        (with_inputs(ports=("pose",)), "recipe.ports has 'pose'"),
        (with_inputs(("adapter_00", "float32", ("B", 32, "h", "w")), ports=("t2i",)), "expected .B.G, a number"),
        (with_inputs(("adapter_00", "float32", ("B*G",)), ports=("t2i",)), "expected .B.G, a number"),
        (with_inputs(("adapter_00", "float32", ("B*G", 32, "h/0", "w")), ports=("t2i",)), "has the size 'h/0'"),
        (with_inputs(("image_key_00", "float32", ("B*G", "T", 8)), ports=("ip-adapter",)), "image_value_00"),
    ],
)
def test_what_a_manifest_may_say(manifest: Manifest, message: str) -> None:
    assert [fault for fault in faults(manifest) if re.search(message, fault)]


def test_sizes() -> None:
    spec = with_inputs(("residual_00", "float32", HALF), ports=("control",)).graphs["denoise"].inputs[-1]
    assert shape_at(spec, {"B": 3, "G": 2, "h": 9, "w": 17}) == (6, 32, 5, 9)
