"""Rewrites to ONNX Runtime's own operators for CUDA: values by definition, what kernels refuse, and the whole path."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from support.contrib_ops import CONTRIB_OPS
from support.exports import SHAPES, Exported
from support.lora_files import shapes_file
from support.rewrites import ON_CUDA, OWN, SMALL, Array, operators, rewritten, run, worst
from support.simulator import contrib_ops as simulated
from support.simulator import machine
from support.simulator.cuda import Fault

from latentrt.export.build.ort_graphs import REWRITES, _functions, build_ort_graphs, chosen_rewrites
from latentrt.export.build.rewrites import bias_add, bias_split_gelu
from latentrt.runtime import InputError, Pipeline
from latentrt.runtime.bundle import Bundle, EngineList, shape_at
from latentrt.runtime.cli.main import main

PROMPT = "two small red squares on a grey background"
FEW: dict[str, Any] = {"num_inference_steps": 3, "output_type": "latent", "seed": 9}
SIZES = {"B": 2, "G": 2, "n": 4, "h": 10, "w": 6, "H": 40, "W": 24, "S": 77}


@pytest.fixture
def any_width(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels for the widths of small models, in the rewrites and on the simulated GPU."""
    for module in (bias_split_gelu, bias_add):
        monkeypatch.setattr(module, "WIDTHS", SMALL)
    for name in ("WIDTHS_OF_GATES", "WIDTHS_OF_SUMS"):
        monkeypatch.setattr(simulated, name, SMALL)


# --- the operators: two independent implementations, or ONNX Runtime's own CPU kernel ---------------------------------

N = (2, 15)  # images, pixels
OPERATORS: dict[str, tuple[str, dict[str, tuple[int, ...]], list[str], dict[str, Any]]] = {
    "norm": (
        "GroupNorm",
        {"x": (3, 4, 5, 24), "gamma": (24,), "beta": (24,)},
        ["y"],
        {"groups": 6, "activation": 0, "epsilon": 2e-3, "channels_last": 1},
    ),
    "time": (
        "SkipGroupNorm",
        {"x": (3, 4, 5, 24), "gamma": (24,), "beta": (24,), "skip": (3, 24)},
        ["y"],
        {"groups": 6, "activation": 1, "epsilon": 2e-3, "channels_last": 1},
    ),
    "residual": (
        "SkipGroupNorm",
        {"x": (3, 4, 5, 24), "gamma": (24,), "beta": (24,), "skip": (3, 4, 5, 24)},
        ["y", "total"],
        {"groups": 4, "activation": 0, "epsilon": 1e-5, "channels_last": 1},
    ),
    "gate": ("BiasSplitGelu", {"x": (*N, 2560), "bias": (2560,)}, ["y"], {}),
    "sum": ("BiasAdd", {"x": (*N, 640), "bias": (640,), "skip": (*N, 640)}, ["y"], {}),
    "layer norm": (
        "SkipLayerNormalization",
        {"x": (*N, 40), "skip": (*N, 40), "gamma": (40,), "beta": (40,), "bias": (40,)},
        ["y", "", "", "total"],
        {"epsilon": 3e-3},
    ),
    "attention": (
        "MultiHeadAttention",
        {"q": (2, 30, 48), "k": (2, 77, 48), "v": (2, 77, 48)},
        ["y"],
        {"num_heads": 3, "scale": 0.2},
    ),
    "packed": ("MultiHeadAttention", {"qkv": (2, 30, 3, 3, 16)}, ["y"], {"num_heads": 3}),
}


def one_operator(name: str, dtype: int) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """A model with one operator, whose vectors are initializers, and random inputs."""
    op, shapes, outputs, facts = OPERATORS[name]
    random = np.random.default_rng(len(name))
    halves = helper.tensor_dtype_to_np_dtype(dtype)
    arrays: dict[str, Array] = {k: random.standard_normal(shape).astype(halves) for k, shape in shapes.items()}
    if "GroupNorm" in op:
        arrays |= {k: arrays[k].astype(np.float32) for k in ("gamma", "beta")}
    weights = [onnx.numpy_helper.from_array(array, k) for k, array in arrays.items() if array.ndim == 1]
    feeds = {k: array for k, array in arrays.items() if array.ndim > 1}
    inputs = [helper.make_tensor_value_info(k, dtype, array.shape) for k, array in feeds.items()]
    results = [helper.make_tensor_value_info(k, dtype, None) for k in outputs if k]
    graph = helper.make_graph([helper.make_node(op, list(shapes), outputs, domain=OWN, **facts)], "g", inputs, results)
    graph.initializer.extend(weights)
    imports = [helper.make_opsetid("", 23), helper.make_opsetid(OWN, 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=10), feeds


@pytest.mark.parametrize(("dtype", "tolerance"), [(TensorProto.FLOAT, 2e-6), (TensorProto.FLOAT16, 3e-3)])
@pytest.mark.parametrize("name", OPERATORS)
def test_operators_are_what_their_definitions_say(name: str, dtype: int, tolerance: float) -> None:
    model, feeds = one_operator(name, dtype)
    expected = ReferenceEvaluator(model, new_ops=CONTRIB_OPS).run(None, feeds)
    assert worst(run(model.SerializeToString(), feeds), expected) < tolerance


def test_the_simulated_kernels_refuse_what_cuda_does() -> None:
    for name, bias in (("gate", 2560), ("sum", 640)):
        model, _ = one_operator(name, TensorProto.FLOAT)
        for tensor in model.graph.initializer:
            tensor.dims[0] = bias // 2 + 32
        with pytest.raises(Fault, match=f"got {bias // 2 + 32}"):
            simulated.with_contrib_ops_expanded(model.SerializeToString())


# --- exported graphs --------------------------------------------------------------------------------------------------


def exported_graph(bundle: Bundle, graph: str) -> tuple[Path, dict[str, Array]]:
    """A graph's file, and random inputs."""
    spec, random = bundle.graph(graph), np.random.default_rng(17)
    feeds = {}
    for tensor in spec.inputs:
        array = random.standard_normal(shape_at(tensor, SIZES))
        feeds[tensor.name] = np.abs(40 * array).astype(tensor.dtype) if "int" in tensor.dtype else array
    return bundle.file(spec.file), {t.name: feeds[t.name].astype(t.dtype) for t in spec.inputs}


@pytest.mark.usefixtures("any_width")
@pytest.mark.parametrize("rewrite", [name for name in ON_CUDA if name not in ("group_norm", "attention_casts")])
@pytest.mark.parametrize(
    ("name", "tolerance"),
    [
        ("sd1-fp32", 1e-5),
        ("sdxl-fp32", 1e-5),
        pytest.param("sd2-fp16", 1e-2, marks=pytest.mark.slow),
        pytest.param("shapes-fp16", 1e-2, marks=pytest.mark.slow),
    ],
)
def test_a_graph_computes_what_it_did(
    exported: Callable[[str], Exported], name: str, tolerance: float, rewrite: str
) -> None:
    bundle = Bundle.open(exported(name).bundle)
    path, feeds = exported_graph(bundle, "denoise")
    expected = run(path.read_bytes(), feeds, bundle.path)
    model = ir.load(path)
    before = operators(model)
    names = ["attention_casts", rewrite] if "attention" in rewrite else [rewrite]
    assert rewritten(model, names) > 0
    after = operators(model)
    blocks, transformers = before["Gelu"], before["GroupNormalization"] - before["Sigmoid"]
    assert blocks >= transformers > 0
    nodes = {node.outputs[0].name: node for node in ir.load(path).graph}
    (resnets,) = (len(node.outputs) for node in nodes.values() if node.inputs[0].name == "time_features")
    normalized = [node.inputs[0].name for node in nodes.values() if node.op_type == "GroupNormalization"]
    sums = sum(name in nodes and nodes[name].op_type == "Add" for name in normalized)
    found = {
        "flat_attention": before["Transpose"] - after["Transpose"] == 4 * before["Attention"],
        "skip_group_norm": after["com.microsoft.SkipGroupNorm"] == resnets,
        "residual_group_norm": after["com.microsoft.SkipGroupNorm"] == sums - resnets > 0,
        "packed_attention": after["com.microsoft.MultiHeadAttention"] == before["Attention"] // 2 == blocks,
        "multi_head_attention": after["com.microsoft.MultiHeadAttention"] == before["Attention"] == 2 * blocks,
        "bias_split_gelu": after["com.microsoft.BiasSplitGelu"] == blocks and not after["Gelu"],
        "skip_layer_norm": after["com.microsoft.SkipLayerNormalization"] == 3 * blocks - transformers,
        "bias_add": after["com.microsoft.BiasAdd"] == 3 * blocks,
    }
    assert found[rewrite]
    assert worst(run(ir.to_proto(model).SerializeToString(), feeds, bundle.path), expected) < tolerance


@pytest.mark.usefixtures("any_width")
@pytest.mark.parametrize("graph", ["denoise", "text_encoder", "vae_decoder"])
@pytest.mark.parametrize(
    ("name", "tolerance"), [("sd1-fp32", 1e-5), pytest.param("sd2-fp16", 1e-2, marks=pytest.mark.slow)]
)
def test_all_rewrites_together(exported: Callable[[str], Exported], name: str, tolerance: float, graph: str) -> None:
    """By ONNX's reference and the definitions in NumPy, without ONNX Runtime."""
    bundle = Bundle.open(exported(name).bundle)
    path, feeds = exported_graph(bundle, graph)
    expected = run(path.read_bytes(), feeds, bundle.path)
    model = ir.load(path)
    rewritten(model, ON_CUDA)
    proto = ir.to_proto(model)
    onnx.load_external_data_for_model(proto, str(bundle.path))
    got = ReferenceEvaluator(proto, new_ops=CONTRIB_OPS).run(None, feeds)
    if graph == "vae_decoder":  # rounded pixels
        got, expected = ([array.astype(np.int16) for array in arrays] for arrays in (got, expected))
        assert max(np.abs(a - b).max() for a, b in zip(got, expected, strict=True)) <= 1
    else:
        assert worst(got, expected) < tolerance


@pytest.mark.usefixtures("any_width")
@pytest.mark.parametrize("fault", ["wrong half", "no bias", "no skip", "no time", "keys and values swapped"])
def test_planted_faults_are_found(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    """Rewritten graphs of `shapes` are compared with an operator that is wrong."""

    right = dict(simulated.EXPANSIONS)

    def wrong(node: simulated.Expansion) -> Iterator[onnx.NodeProto]:
        for made in right[node.node.op_type](node):
            if fault == "wrong half" and made.op_type == "Split":
                made.output[:] = made.output[::-1]
            if fault == "keys and values swapped" and made.op_type == "MultiHeadAttention":
                made.input[1], made.input[2] = made.input[2], made.input[1]
            if (fault, made.op_type) in {("no bias", "Add"), ("no skip", "Add"), ("no time", "Add")}:
                addend = {"no bias": node.inputs[1], "no skip": node.inputs[-1], "no time": node.at("rows of skip")}
                if made.input[1] == addend[fault]:
                    made = helper.make_node("Identity", made.input[:1], made.output)
            yield made

    rewrite, op = {
        "wrong half": ("bias_split_gelu", "BiasSplitGelu"),
        "no bias": ("bias_split_gelu", "BiasSplitGelu"),
        "no skip": ("bias_add", "BiasAdd"),
        "no time": ("skip_group_norm", "SkipGroupNorm"),
        "keys and values swapped": ("packed_attention", "MultiHeadAttention"),
    }[fault]
    bundle = Bundle.open(SHAPES.bundle)
    path, feeds = exported_graph(bundle, "denoise")
    model = ir.load(path)
    rewritten(model, [rewrite])
    data = ir.to_proto(model).SerializeToString()
    expected = run(path.read_bytes(), feeds, bundle.path)
    assert worst(run(data, feeds, bundle.path), expected) < 1e-5
    monkeypatch.setitem(simulated.EXPANSIONS, op, wrong)
    assert worst(run(data, feeds, bundle.path), expected) > 1e-3


# --- names, records and the whole path --------------------------------------------------------------------------------


def test_names() -> None:
    defaults = chosen_rewrites(["cpu", "cuda"])
    assert defaults["cpu"] == ["attention"]
    assert {"bias_split_gelu", "skip_layer_norm", "bias_add", "group_norm"} < set(defaults["cuda"])
    assert not {"packed_attention", "multi_head_attention", "residual_group_norm"} & set(defaults["cuda"])
    # In the order in which they are applied, whatever that of the names.
    assert chosen_rewrites(["cpu", "cuda"], ["bias_add", "group_norm"]) == {"cuda": ["group_norm", "bias_add"]}
    with pytest.raises(InputError, match="did you mean 'bias_add'"):
        chosen_rewrites(["cuda"], ["bias_ad"])
    with pytest.raises(InputError, match=r"bias_add: not a rewrite for cpu, which has attention\."):
        chosen_rewrites(["cpu"], ["bias_add"])
    assert all(callable(function) for function in _functions(list(REWRITES)))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [
        "build",
        str(SHAPES.bundle),
        "--backend",
        "onnxruntime",
        "--engines",
        str(tmp_path),
        "--graph",
        "denoise",
    ]
    named = ["--rewrite", "skip_layer_norm", "--rewrite", "group_norm"]
    for options, wanted in (([], None), (named, "group_norm, skip_layer_norm"), ([], None)):
        assert main([*command, "--device", "cuda", *options]) == 0
        assert "already" not in capsys.readouterr().out
        (record,) = EngineList.of_bundle(Bundle.open(SHAPES.bundle), tmp_path).engines
        assert list(record.options) == [wanted or ", ".join(chosen_rewrites(["cuda"])["cuda"])]
        assert len(list((tmp_path / "engines").iterdir())) == 1
    for options, message in (
        (["--rewrite", "gelu"], "rewrite 'gelu'"),
        (["--device", "cpu", "--rewrite", "bias_add"], "not a rewrite for cpu"),
        (
            ["--rewrite", "attention_casts"],
            "by an operator of onnxruntime (on cuda attention_casts)",
        ),
    ):
        assert main([*command, *options]) == 1
        assert message in capsys.readouterr().err
    assert main(["build", str(SHAPES.bundle), "--backend", "tensorrt_rtx", "--rewrite", "bias_add"]) == 1
    assert "--rewrite is for onnxruntime" in capsys.readouterr().err
    assert len(list((tmp_path / "engines").iterdir())) == 1


@pytest.fixture(scope="module")
def expected() -> Array:
    with Pipeline.load(device="cpu") as cpu:
        latents: Array = cpu(PROMPT, **FEW).latents
    return latents


@pytest.mark.usefixtures("any_width")
@pytest.mark.parametrize("options", [[], ["packed_attention", "multi_head_attention", "residual_group_norm"]])
def test_they_draw_the_same(
    tmp_path: Path, expected: Array, monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    """Also with a LoRA, which changes weights that were put together."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    bundle = Path(shutil.copytree(SHAPES.bundle, tmp_path / "shapes"))
    list(build_ort_graphs(bundle, devices=["cuda"], rewrites=[*chosen_rewrites(["cuda"])["cuda"], *options]))
    lora = shapes_file(tmp_path / "style.safetensors", seed=4)
    with Pipeline.load(bundle, device="cpu") as cpu:
        cpu.set_loras({lora: 0.7})
        changed = cpu(PROMPT, **FEW).latents
    with machine(onnxruntime={}), Pipeline.load(bundle, backend="onnxruntime") as pipe:
        for loras, wanted in (({}, expected), ({lora: 0.7}, changed)):
            pipe.set_loras(loras)
            got = pipe(PROMPT, **FEW).latents
            # Sums in another order, over three steps: up to 2.4e-5 on CPUs with AMX, less on others.
            np.testing.assert_allclose(got, wanted, rtol=0, atol=4e-5 * np.abs(wanted).max())
        path = str(pipe._backend._engines.get("denoise")._path)  # type: ignore[attr-defined]
    built = {node.op_type for node in onnx.load(path, load_external_data=False).graph.node}
    assert {"BiasSplitGelu", "SkipLayerNormalization", "BiasAdd", "SkipGroupNorm"} < built
    assert ("MultiHeadAttention" in built) == bool(options)
    assert np.abs(changed - expected).max() > 0.01 * np.abs(expected).max()
