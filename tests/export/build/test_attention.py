"""Attention as ONNX Runtime's MultiHeadAttention on CPUs: values, unsupported nodes, and images from built graphs."""

import shutil
from collections.abc import Callable
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
from support.exports import SHAPES, Exported
from support.lora_files import shapes_file
from support.simulator import machine

from latentrt.export.build.ort_graphs import build_ort_graphs
from latentrt.export.build.rewrites.attention import use_flash_attention
from latentrt.runtime import ExportError, Pipeline
from latentrt.runtime.bundle import Bundle, shape_at
from latentrt.runtime.goldens import verify_goldens

PROMPT = "a large green ring on a black background"
FEW: dict[str, Any] = {"num_inference_steps": 3, "output_type": "latent", "seed": 6, "height": 96, "width": 64}
SIZES = {"B": 2, "G": 2, "n": 2, "h": 10, "w": 6, "H": 48, "W": 40, "S": 77}


def session(model: bytes, folder: Path | None = None, saved: Path | None = None) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if folder is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    if saved is not None:
        options.optimized_model_filepath = str(saved)
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


# --- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "graph"),
    [
        ("shapes", "denoise"),
        ("sd1-fp32", "denoise"),
        ("sd1-fp32", "vae_decoder"),
        ("sd1-fp32", "vae_encoder"),
        ("sdxl-fp32", "denoise"),
    ],
)
def test_a_graph_computes_what_it_did(
    exported: Callable[[str], Exported], tmp_path: Path, name: str, graph: str
) -> None:
    """Same outputs as the exported graph, and no more transposes after ONNX Runtime's optimization."""
    bundle = Bundle.open(exported(name).bundle)
    spec = bundle.graph(graph)
    random = np.random.default_rng(8)
    feeds = {t.name: random.standard_normal(shape_at(t, SIZES)).astype(t.dtype) for t in spec.inputs}
    original = bundle.file(spec.file)
    model = ir.load(original)
    before = [node.op_type for node in model.graph].count("Attention")
    assert use_flash_attention(model) == before > 0
    assert "Attention" not in {node.op_type for node in model.graph}
    graphs = {"exported": original.read_bytes(), "built": ir.to_proto(model).SerializeToString()}
    outputs, transposes = {}, {}
    for which, data in graphs.items():
        saved = tmp_path / f"{which}.onnx"
        outputs[which] = session(data, bundle.path, saved).run(None, feeds)
        optimized = onnx.load(saved, load_external_data=False)
        transposes[which] = [node.op_type for node in optimized.graph.node].count("Transpose")
    assert transposes["built"] <= transposes["exported"]
    for mine, wanted in zip(outputs["built"], outputs["exported"], strict=True):
        assert mine.dtype == wanted.dtype
        if mine.dtype == np.uint8:  # rounded: differences of one level, and few
            difference = np.abs(mine.astype(int) - wanted)
            assert difference.max() <= 1
            assert (difference > 0).mean() < 1e-3
        else:
            np.testing.assert_allclose(mine, wanted, rtol=0, atol=3e-6 * np.abs(wanted).max())


def one_attention(
    *,
    query: tuple[int, ...] = (2, 3, 50, 24),
    key: tuple[int, ...] = (2, 3, 70, 24),
    value: tuple[int, ...] = (2, 3, 70, 24),
    dtype: int = TensorProto.FLOAT,
    mask: tuple[int, ...] = (),
    outputs: tuple[str, ...] = ("y",),
    **attributes: float,
) -> ir.Model:
    """A graph with a single Attention."""
    shapes = {"q": query, "k": key, "v": value} | ({"m": mask} if mask else {})
    node = helper.make_node("Attention", list(shapes), list(outputs), **attributes)
    inputs = [helper.make_tensor_value_info(name, dtype, shape) for name, shape in shapes.items()]
    values = [helper.make_tensor_value_info(name, dtype, None) for name in outputs if name]
    graph = helper.make_graph([node], "g", inputs, values)
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10))


@pytest.mark.parametrize(
    "facts",
    [
        {},
        {"scale": 0.3},
        {"query": (1, 1, 130, 512), "key": (1, 1, 130, 512), "value": (1, 1, 130, 512)},  # as in a VAE
        {"value": (2, 3, 70, 8)},
        {"query": (3, 5, 1, 7), "key": (3, 5, 1, 7), "value": (3, 5, 1, 7)},
        {"is_causal": 0, "softcap": 0.0, "qk_matmul_output_mode": 0},
    ],
)
def test_the_operator_is_onnx_attention(facts: dict[str, Any]) -> None:
    """Same values as ONNX's reference, also for sizes that are not multiples of a tile."""
    model = one_attention(**facts)
    random = np.random.default_rng(3)
    feeds = {x.name: 2 * random.standard_normal(x.shape.numpy()).astype(np.float32) for x in model.graph.inputs}
    (expected,) = ReferenceEvaluator(ir.to_proto(model)).run(None, feeds)
    assert use_flash_attention(model) == 1
    assert [output.name for output in model.graph.outputs] == ["y"]
    (got,) = session(ir.to_proto(model).SerializeToString()).run(None, feeds)
    np.testing.assert_allclose(got, expected, rtol=0, atol=5e-6 * np.abs(expected).max())


@pytest.mark.parametrize(
    "facts",
    [
        {"mask": (50, 70)},
        {"is_causal": 1},
        {"softcap": 3.0},
        {"dtype": TensorProto.FLOAT16},
        {"query": (2, 6, 50, 24)},  # two query heads per key head
        {"query": (2, 50, 72), "key": (2, 70, 72), "value": (2, 70, 72), "q_num_heads": 3, "kv_num_heads": 3},
        {"outputs": ("y", "", "", "scores")},
    ],
)
def test_what_it_cannot_compute_is_left(facts: dict[str, Any]) -> None:
    model = one_attention(**facts)
    assert use_flash_attention(model) == 0
    assert [node.op_type for node in model.graph] == ["Attention"]
    assert "com.microsoft" not in model.opset_imports


# --- images -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the embedded bundle, built for CPUs and GPUs."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    copy = Path(shutil.copytree(SHAPES.bundle, tmp_path / "shapes"))
    built = [(one.record.graph, one.record.device) for one in build_ort_graphs(copy)]
    # The VAE has no attention, and that of the text encoder has a mask.
    assert built == [
        ("text_encoder", "cuda"),
        ("denoise", "cpu"),
        ("denoise", "cuda"),
        ("vae_decoder", "cuda"),
        ("vae_encoder", "cuda"),
    ]
    assert all(again.seconds is None for again in build_ort_graphs(copy))
    return copy


@pytest.fixture(scope="module")
def expected() -> NDArray[Any]:
    with Pipeline.load(device="cpu") as pipe:
        latents: NDArray[Any] = pipe(PROMPT, **FEW).latents
    return latents


def drawn(pipe: Pipeline, expected: NDArray[Any]) -> str:
    """Compare an image's latents with `expected`; returns the file of `denoise`."""
    np.testing.assert_allclose(pipe(PROMPT, **FEW).latents, expected, rtol=0, atol=2e-5 * np.abs(expected).max())
    return str(pipe._backend.engine("denoise").path)  # type: ignore[attr-defined]


def test_a_cpu_uses_what_is_for_it(bundle: Path, expected: NDArray[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    with Pipeline.load(bundle, device="cpu") as pipe:
        path = drawn(pipe, expected)
        assert all(check.passed for check in verify_goldens(pipe))
        assert pipe._backend.engine("time").path == bundle / "time.onnx"  # type: ignore[attr-defined]
    assert "MultiHeadAttention" in {node.op_type for node in onnx.load(path, load_external_data=False).graph.node}
    monkeypatch.chdir(bundle.parent)
    with Pipeline.load(Path(bundle.name), backend="onnxruntime") as pipe:
        assert "engines/denoise-" in drawn(pipe, expected)
    with machine(onnxruntime={}), Pipeline.load(bundle, backend="onnxruntime") as pipe:
        pipe(PROMPT, **FEW)
        on_gpu = str(pipe._backend._engines.get("denoise")._path)  # type: ignore[attr-defined]
    assert "engines/denoise-" in on_gpu != path


def test_a_folder_of_their_own(tmp_path: Path, expected: NDArray[Any]) -> None:
    folder = tmp_path / "elsewhere"
    list(build_ort_graphs(SHAPES.bundle, devices=["cpu"], engines=folder))
    with Pipeline.load(device="cpu", engines=folder) as pipe:
        assert drawn(pipe, expected).startswith(str(folder))


def test_lora_and_back(bundle: Path, tmp_path: Path, expected: NDArray[Any]) -> None:
    lora = shapes_file(tmp_path / "style.safetensors", seed=4)
    with Pipeline.load(device="cpu") as plain:
        plain.set_loras({lora: 0.7})
        changed = plain(PROMPT, **FEW).latents
    with Pipeline.load(bundle, device="cpu") as pipe:
        for loras, wanted in (({}, expected), ({lora: 0.7}, changed), ({}, expected)):
            pipe.set_loras(loras)
            assert "engines/denoise-" in drawn(pipe, wanted)
    assert np.abs(changed - expected).max() > 0.01 * np.abs(expected).max()


def test_a_damaged_one_is_not_used(bundle: Path, expected: NDArray[Any], caplog: pytest.LogCaptureFixture) -> None:
    for path in (bundle / "engines").glob("denoise-*"):
        path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with Pipeline.load(bundle, device="cpu") as pipe:
        assert drawn(pipe, expected) == str(bundle / "denoise.onnx")
    assert "its hash does not match" in caplog.text
    assert f"latentrt build {bundle} --backend onnxruntime" in caplog.text


@pytest.mark.slow
def test_bundles_without_such_attention_are_refused(exported: Callable[[str], Exported], tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"(?s)nothing to replace.*\(on cpu attention\)\. .*opset 18"):
        list(build_ort_graphs(exported("sd2-fp32-opset18").bundle, devices=["cpu"], engines=tmp_path))
