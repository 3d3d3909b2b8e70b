"""Exports: cut and fusion of graphs, parity with PyTorch, the manifest's weights, and cleanup after failures."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from safetensors.torch import load_file
from support.checkpoints import tiny_checkpoint
from support.exports import EXPORTS, Exported

from latentrt.export import parity, write
from latentrt.export.checkpoint.checkpoint import Checkpoint
from latentrt.export.checkpoint.source import Source
from latentrt.export.graphs import fuse
from latentrt.export.graphs.cut import cut_denoiser
from latentrt.export.graphs.onnx_export import TensorInput, onnx_from_module
from latentrt.export.graphs.onnx_files import save_graph
from latentrt.export.write import ExportOptions, export_bundle
from latentrt.runtime import Bundle, CheckpointError, ExportError, ParityError
from latentrt.runtime.bundle.manifest import PORTS
from latentrt.runtime.bundle.strict_json import encode
from latentrt.runtime.cli.main import main

GRAPHS = {"context", "time", "denoise", "blend", "vae_decoder", "vae_encoder"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny", "sd1", seed=5)


@pytest.mark.parametrize("name", [*EXPORTS, "shapes"])
def test_every_graph_is_there_and_follows_the_contract(exported: Callable[[str], Exported], name: str) -> None:
    """The export itself has checked parity with PyTorch at two shapes."""
    bundle = Bundle.open(exported(name).bundle)
    encoders = {encoder.graph for encoder in bundle.manifest.model.text_encoders}
    previews = {"preview_decoder"} if "taesd" in name else set()
    ports = tuple(PORTS[port] for port in bundle.manifest.recipe.ports)
    assert len(ports) == (len(PORTS) if "-ports-" in name else 0)
    assert set(bundle.manifest.graphs) == GRAPHS | encoders | previews
    opset = bundle.manifest.recipe.opset
    assert name == "shapes" or opset == EXPORTS[name][2]
    for graph, spec in bundle.manifest.graphs.items():
        model = ir.load(bundle.file(spec.file))
        assert model.opset_imports[""] == opset
        shapes = {v.name: [str(d) for d in v.shape or ()] for v in (*model.graph.inputs, *model.graph.outputs)}
        named = {t.name: [str(d) for d in t.shape] for t in (*spec.inputs, *spec.outputs)}
        assert shapes == named, graph
    denoise = {t.name: t for t in bundle.graph("denoise").inputs if not t.name.startswith(ports or "none")}
    context = {t.name: t for t in bundle.graph("context").outputs}
    assert set(denoise) - set(context) - {"extra"} == {
        "state", "coefficients", "guidance", "guidance_rescale", "noise", "time_features",
    }  # fmt: skip
    assert ("extra" in denoise) == ("inpaint" in name)
    of_time = {t.name for t in bundle.graph("time").inputs}
    more = {"sdxl": {"pooled", "time_ids"}, "lcm": {"guidance_embedding"}}
    assert of_time == {"timesteps"} | more.get(name.partition("-")[0], set())
    assert {k: v.dtype for k, v in context.items()} == {k: denoise[k].dtype for k in context}
    assert all(t.dtype == "float32" for k, t in denoise.items() if k not in context and k != "time_features")


@pytest.mark.parametrize("name", [*EXPORTS, "shapes"])
def test_every_parameter_can_be_rebuilt(exported: Callable[[str], Exported], name: str) -> None:
    case = exported(name)
    bundle = Bundle.open(case.bundle)
    models = {graph: ir.load(bundle.file(spec.file)) for graph, spec in bundle.manifest.graphs.items()}
    precision = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    dtype = precision[bundle.manifest.recipe.precision]
    islands = ("unet.time_embedding.", "unet.add_embedding.", "unet.conv_out.")
    rebuilt = 0
    for part, stem in (
        *((encoder.graph, "model") for encoder in bundle.manifest.model.text_encoders),
        ("unet", "diffusion_pytorch_model"),
        ("vae", "diffusion_pytorch_model"),
    ):
        for key, parameter in load_file(case.checkpoint / part / f"{stem}.safetensors").items():
            full = f"{part}.{key.removeprefix('text_model.')}"
            if full in unused(bundle, case.checkpoint):
                continue
            rounded = parameter.to(dtype)
            assert bundle.manifest.weights[full], full
            for use in bundle.manifest.weights[full]:
                initializer = models[use.graph].graph.initializers[use.initializer].const_value
                assert initializer is not None
                value = initializer.numpy().astype(np.float32)
                value = value.T if use.transposed else value
                assert np.array_equal(value, rounded.float().numpy()), (full, use)
                expected = torch.float32 if full.startswith(islands) else dtype
                assert use.dtype == str(expected).removeprefix("torch.")
                rebuilt += 1
    assert rebuilt == sum(len(uses) for uses in bundle.manifest.weights.values())


def unused(bundle: Bundle, checkpoint: Path) -> set[str]:
    """Parameters that do not affect images: SDXL reads the text encoders before their last layer."""
    if bundle.manifest.model.family != "sdxl":
        return set()
    names = load_file(checkpoint / "text_encoder" / "model.safetensors")
    last = max(int(name.split("layers.")[1].split(".")[0]) for name in names if "layers." in name)
    return {
        f"text_encoder.{name.removeprefix('text_model.')}"
        for name in names
        if f"layers.{last}." in name or "final_layer_norm" in name
    }


@pytest.mark.slow
def test_the_embedded_bundle_is_that_of_its_checkpoint_and_small(exported: Callable[[str], Exported]) -> None:
    """If this fails, export it again with the command in benchmarks/shapes/README.md."""
    shapes = exported("shapes")
    manifest = Bundle.open(shapes.bundle).manifest
    assert manifest.checkpoint.sha256 == Checkpoint.open(shapes.checkpoint).sha256()
    assert manifest.recipe.compact
    files = [f for folder in (shapes.checkpoint, shapes.bundle) for f in folder.rglob("*") if f.is_file()]
    assert sum(len(zlib.compress(f.read_bytes(), 1)) for f in files) < 24 * 2**20  # as it travels


class Sideways(torch.nn.Module):
    """A denoiser unlike a UNet: two cross-attentions, 1-D and 4-D time features, other names."""

    def __init__(self) -> None:
        super().__init__()
        self.p = torch.nn.ParameterDict(
            {name: torch.randn(8, 8) * 0.3 for name in ("first", "second", "third", "k", "v", "q", "k2", "v2")}
        )

    def attention(self, x: torch.Tensor, text: torch.Tensor, k: str, v: str) -> torch.Tensor:
        query = (x @ self.p["q"]).unsqueeze(1)
        keys, values = ((text @ self.p[name]).unsqueeze(1) for name in (k, v))
        attended: torch.Tensor = torch.nn.functional.scaled_dot_product_attention(query, keys, values).squeeze(1)
        return x + attended

    def forward(self, words: torch.Tensor, picture: torch.Tensor, moment: torch.Tensor) -> torch.Tensor:
        wave = torch.sin(moment[:, None] * torch.arange(1, 9))
        gate = torch.tanh(wave @ self.p["first"])[:, :, None, None]
        x = picture * gate + (wave @ self.p["second"])[:, :, None, None]
        n, c, h, w = x.shape
        tokens = x.flatten(2).transpose(1, 2) + torch.relu(wave @ self.p["third"])[:, None]
        tokens = self.attention(self.attention(tokens, words, "k", "v"), words, "k2", "v2")
        return tokens.transpose(1, 2).reshape(n, c, h, w)


@pytest.mark.slow
@pytest.mark.parametrize("opset", [18, 23])
def test_the_cut_knows_no_layer_names(opset: int, tmp_path: Path) -> None:
    import onnxruntime

    module = Sideways().eval()
    inputs = [
        TensorInput("words", torch.randn(2, 5, 8), {0: "n", 1: "S"}),
        TensorInput("picture", torch.randn(2, 8, 3, 4), {0: "n", 2: "h", 3: "w"}),
        TensorInput("moment", torch.rand(2), {0: "n"}),
    ]
    model = onnx_from_module(module, inputs, ["out"], opset=opset)
    cut = cut_denoiser(model, time_inputs={"moment"}, context_inputs={"words"})
    assert [v.name for v in cut.context.graph.outputs] == ["key_00", "value_00", "key_01", "value_01"]
    assert cut.time.graph.outputs[0].shape == ir.Shape(["n", 24])
    assert [v.name for v in cut.loop.graph.inputs][:2] == ["picture", "time_features"]
    sessions = {}
    for name in ("time", "context", "loop"):
        ir.save(getattr(cut, name), tmp_path / f"{name}.onnx")
        sessions[name] = onnxruntime.InferenceSession(tmp_path / f"{name}.onnx")
    words, picture, moment = torch.randn(3, 7, 8), torch.randn(3, 8, 5, 2), torch.rand(3)
    features = sessions["time"].run(None, {"moment": moment.numpy()})[0]
    names = [o.name for o in sessions["context"].get_outputs()]
    context = dict(zip(names, sessions["context"].run(None, {"words": words.numpy()}), strict=True))
    got = sessions["loop"].run(None, {"picture": picture.numpy(), "time_features": features, **context})[0]
    with torch.no_grad():
        expected = module(words, picture, moment).numpy()
    assert np.abs(got - expected).max() < 1e-5


class FixedLength(torch.nn.Module):
    """Adds positions for a fixed length."""

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        return words + torch.arange(5)


def test_a_dimension_that_the_code_fixes_is_refused() -> None:
    words = TensorInput("words", torch.zeros(2, 5), {0: "n", 1: "S"})
    with pytest.raises(ExportError, match=r"dimension 1 \('S'\) of input 'words' was fixed to 5"):
        onnx_from_module(FixedLength(), [words], ["out"], opset=23)


def test_compact_storage_loses_nothing(tmp_path: Path) -> None:
    import onnxruntime

    exact = np.arange(-512, 512, dtype=np.float32).reshape(32, 32) / 64
    inexact = exact + np.float32(1e-5)
    x, y = fuse.tensor("x", ir.DataType.FLOAT, ["n", 32]), fuse.tensor("y", ir.DataType.FLOAT, ["n", 32])
    tape = ir.tape.Tape()
    weights = [tape.initializer(ir.tensor(w, name=name), name) for w, name in ((exact, "exact"), (inexact, "inexact"))]
    tape.op("MatMul", [tape.op("MatMul", [x, weights[0]]), weights[1]], output=y)
    graph = ir.Graph([x], [y], nodes=tape.nodes, initializers=tape.initializers, opset_imports={"": 23}, name="g")
    save_graph(ir.Model(graph, ir_version=10), tmp_path / "g.onnx", compact=True)
    stored = {k: v.dtype for k, v in ir.load(tmp_path / "g.onnx").graph.initializers.items()}
    assert stored == {"exact": ir.DataType.FLOAT16, "inexact": ir.DataType.FLOAT}
    data = np.random.default_rng(0).standard_normal((3, 32), np.float32)
    got = onnxruntime.InferenceSession(tmp_path / "g.onnx").run(None, {"x": data})[0]
    assert np.allclose(got, data @ exact @ inexact, rtol=1e-5, atol=1e-3)


def test_the_same_graph_gives_the_same_files(tmp_path: Path) -> None:
    """In any order of its weights: the cut leaves them in the order of a set."""
    files = []
    for order in (("a", "b", "c"), ("c", "a", "b")):
        x = fuse.tensor("x", ir.DataType.FLOAT, (3, 256))
        weights = {name: ir.tensor(np.full((256, 256), ord(name), np.float32), name=name) for name in order}
        values = {name: ir.Value(name=name, const_value=tensor) for name, tensor in weights.items()}
        nodes = [ir.node("MatMul", [x, values["a"]])]
        for name in ("b", "c"):
            nodes.append(ir.node("MatMul", [nodes[-1].outputs[0], values[name]]))
        ordered = [values[name] for name in order]
        graph = ir.Graph([x], nodes[-1].outputs, nodes=nodes, initializers=ordered, opset_imports={"": 23}, name="g")
        save_graph(ir.Model(graph, ir_version=10), tmp_path / "g.onnx", compact=False)
        files.append([(tmp_path / name).read_bytes() for name in ("g.onnx", "g.onnx.data")])
        for file in tmp_path.iterdir():
            file.unlink()
    assert files[0] == files[1]


@pytest.mark.slow
def test_a_wrong_graph_is_named_with_error_and_tolerance(sd1: Exported, tmp_path: Path) -> None:
    """Runs the parity check on bundles in which one weight of one graph was changed."""
    bundle = Bundle.open(sd1.bundle)
    for graph in ("text_encoder", "denoise", "vae_decoder", "vae_encoder", "blend"):
        folder = tmp_path / graph
        shutil.copytree(sd1.bundle, folder)
        shutil.rmtree(folder / "golden")
        model = ir.load(folder / f"{graph}.onnx")
        largest = max(model.graph.initializers.values(), key=lambda v: v.const_value.size if v.dtype == 1 else 0)
        largest.const_value = ir.tensor(largest.const_value.numpy() * 1.05 + 0.01, name=largest.name)
        ir.save(model, folder / f"{graph}.onnx")
        request = {
            "source": encode(Source(str(sd1.checkpoint))),
            "folder": str(folder),
            "precision": "fp32",
            "vae_precision": "fp32",
            "ports": [],
            "prompt": "a",
            "model": json.loads((sd1.bundle / "bundle.json").read_text())["model"],
            "defaults": {"height": 32, "width": 32, "num_inference_steps": 2, "guidance_scale": 2.0}
            | {"strength": 0.8, "inpaint_strength": 1.0},
        }
        with pytest.raises(ParityError, match=rf"{graph}: .* differs from PyTorch by .* tolerance is .* at fp32"):
            parity.check_and_make_golden(request)
    assert bundle.altered_files() == []


class StopError(Exception):
    """A planted failure."""


def leftovers(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize("failure", [StopError("planted"), KeyboardInterrupt(), ParityError("planted")])
def test_a_failed_export_leaves_nothing_behind(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    def fail(writer: write._Writer) -> None:
        (writer.folder / "half.onnx").write_bytes(b"half")
        raise failure

    monkeypatch.setattr(write._Writer, "text_encoder", fail)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "bundle.json").write_text("old")
    for out, options in (("new", ExportOptions()), ("old", ExportOptions(overwrite=True))):
        with pytest.raises(type(failure)):
            export_bundle(checkpoint, tmp_path / out, options)
    assert leftovers(tmp_path) == ["old"]
    assert (tmp_path / "old" / "bundle.json").read_text() == "old"


def test_a_full_disk_leaves_nothing_behind(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(write, "save_graph", full)
    with pytest.raises(ExportError, match=r"disk .* is full .* has been removed"):
        export_bundle(checkpoint, tmp_path / "out", ExportOptions())
    assert leftovers(tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_middle_leaves_nothing_behind(checkpoint: Path, tmp_path: Path, number: int) -> None:
    command = [sys.executable, "-m", "latentrt.runtime.cli", "export", str(checkpoint), str(tmp_path / "out")]
    child = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # where tests run in the background, children would inherit that it is ignored
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob(".out.*/text_encoder.onnx")) and time.monotonic() < deadline and child.poll() is None:
        time.sleep(0.05)
    os.kill(child.pid, number)
    _, errors = child.communicate(timeout=60)
    assert child.returncode == 128 + number, errors
    assert "no incomplete files were left" in errors
    assert leftovers(tmp_path) == []


def test_an_existing_folder_is_not_replaced_unasked(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"already exists.*--overwrite"):
        export_bundle(checkpoint, tmp_path)


def copied(checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint, tmp_path / "copy"))


def spoil_missing(folder: Path) -> None:
    (folder / "vae" / "config.json").unlink()


def spoil_weights(folder: Path) -> None:
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()


def spoil_truncated(folder: Path) -> None:
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def spoil_json(folder: Path) -> None:
    (folder / "unet" / "config.json").write_text("{")


def spoil_class(folder: Path) -> None:
    (folder / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')


def spoil_pickle(folder: Path) -> None:
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    file.rename(file.with_suffix(".bin"))


def spoil_keys(folder: Path) -> None:
    from safetensors.torch import save_file

    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    del weights["conv_in.weight"]
    save_file(weights, file, metadata={"format": "pt"})


def spoil_config(folder: Path, part: str, **changes: Any) -> None:
    file = folder / part / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def spoil_activation(folder: Path) -> None:
    spoil_config(folder, "text_encoder", hidden_act="relu")


def spoil_latents(folder: Path) -> None:
    spoil_config(folder, "vae", latents_mean=[0.0] * 4, latents_std=[1.0] * 4)


def spoil_channels(folder: Path) -> None:
    spoil_config(folder, "unet", in_channels=7)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_missing, r"vae/config.json is missing.*model_index.json"),
        (spoil_weights, r"unet/diffusion_pytorch_model.safetensors is missing"),
        (spoil_truncated, r"unet/diffusion_pytorch_model.safetensors is not a valid safetensors file"),
        (spoil_json, r"unet/config.json is not JSON"),
        (spoil_class, r"unsupported class 'FluxPipeline'; supported are StableDiffusionPipeline"),
        (spoil_pickle, r"only pickled weights.*--allow-pickle"),
        (spoil_keys, r"unet does not have the weights.*1 missing, such as conv_in.weight"),
        (
            spoil_activation,
            r"text_encoder with relu, which matches no supported family: sd1, sd2, sdxl, sdxl-refiner",
        ),
        (spoil_latents, r"VAE with latents_mean, which is not supported for sd1"),
        (spoil_channels, r"7 input channels; supported are 4 .* and 9"),
    ],
)
def test_a_spoilt_checkpoint_is_refused(
    checkpoint: Path, tmp_path: Path, spoil: Callable[[Path], None], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copied(checkpoint, tmp_path)
    spoil(folder)
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.open(folder).load("unet", torch.float32)
    if "cannot" not in message:
        assert main(["export", str(folder), str(tmp_path / "out")]) == 1
        assert capsys.readouterr().err.startswith("latentrt: ")
    assert leftovers(tmp_path) == ["copy"]


def test_what_is_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="is not a valid safetensors file"):
        Checkpoint.open(tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="does not exist"):
        Checkpoint.open(tmp_path / "nothing")


@pytest.mark.parametrize(("upcast", "expected"), [(True, "fp32"), (None, "fp32"), (False, "fp16")])
def test_the_vae_of_sdxl_stays_out_of_fp16(tmp_path: Path, upcast: bool | None, expected: str) -> None:
    for family, precision in (("sdxl", expected), ("sd1", "fp16")):
        folder = tiny_checkpoint(tmp_path / family, family, tinier=True)
        spoil_config(folder, "vae", force_upcast=upcast)
        if upcast is None:
            config = json.loads((folder / "vae" / "config.json").read_text())
            del config["force_upcast"]
            (folder / "vae" / "config.json").write_text(json.dumps(config))
        checkpoint = Checkpoint.open(folder)
        assert write._vae_precision(checkpoint, "fp16") == precision
        assert write._vae_precision(checkpoint, "bf16") == "bf16"
