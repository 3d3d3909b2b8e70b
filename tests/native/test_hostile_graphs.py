"""Bundles whose graphs, goldens or facts do not fit together: an error, and no memory is read that is not theirs."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from safetensors.numpy import load_file, save_file
from support.exports import SHAPES
from support.native import BACKEND, BUNDLE, NativeError, NativePipeline

SMALL: dict[str, Any] = {"num_inference_steps": 2, "height": 64, "width": 64, "seed": 3}
KINDS = {
    "float32": TensorProto.FLOAT,
    "int64": TensorProto.INT64,
    "int32": TensorProto.INT32,
    "uint8": TensorProto.UINT8,
}
FEATURES = 928


class Hostile:
    """A copy of a bundle in which a test replaces files and facts."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(shutil.copytree(SHAPES.bundle, folder))
        self.manifest: dict[str, Any] = json.loads((folder / "bundle.json").read_text())
        self.manifest["engines"], self.manifest["weights"] = [], {}

    def graph(self, name: str, outputs: dict[str, tuple[str, list[int | str]]], **said: Any) -> None:
        """Replace a graph by one whose outputs are zeros of these sizes: a number, or "n" for the rows of the first
        input. `said` are the shapes that the manifest has for them, where they differ."""
        spec = self.manifest["graphs"][name]
        inputs = [helper.make_tensor_value_info(t["name"], KINDS[t["dtype"]], t["shape"]) for t in spec["inputs"]]
        first = spec["inputs"][0]["name"]
        nodes = [
            helper.make_node("Shape", [first], ["shape"]),
            helper.make_node("Slice", ["shape", "zero", "one"], ["rows"]),
        ]
        constants = [
            helper.make_tensor("zero", TensorProto.INT64, [1], [0]),
            helper.make_tensor("one", TensorProto.INT64, [1], [1]),
            helper.make_tensor("less", TensorProto.INT64, [1], [-1]),
        ]
        results, spec["outputs"] = [], []
        for output, (dtype, sizes) in outputs.items():
            parts = []
            for i, size in enumerate(sizes):
                parts.append("rows" if isinstance(size, str) else f"{output}_{i}")
                if isinstance(size, int):
                    constants.append(helper.make_tensor(parts[-1], TensorProto.INT64, [1], [size]))
            zero = helper.make_tensor("value", KINDS[dtype], [1], [0])
            nodes.append(helper.make_node("Concat", parts, [f"{output}_all"], axis=0))
            # All of them, by a condition that is known at run time alone: so nothing is inferred.
            nodes.append(helper.make_node("Add", [f"{output}_all", "rows"], [f"{output}_sum"]))
            nodes.append(helper.make_node("Greater", [f"{output}_sum", "less"], [f"{output}_true"]))
            nodes.append(helper.make_node("Compress", [f"{output}_all", f"{output}_true"], [f"{output}_shape"], axis=0))
            nodes.append(helper.make_node("ConstantOfShape", [f"{output}_shape"], [output], value=zero))
            # The graph itself says nothing of the sizes.
            results.append(helper.make_tensor_value_info(output, KINDS[dtype], None))
            spec["outputs"].append({"name": output, "dtype": dtype, "shape": said.get(output, sizes)})
        graph = helper.make_graph(nodes, name, inputs, results, constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.save(model, self.folder / spec["file"])

    def goldens(self, change: Callable[[dict[str, Any]], object]) -> None:
        """Change the goldens."""
        file = self.folder / "golden" / "golden.safetensors"
        arrays = load_file(file)
        change(arrays)
        save_file(arrays, file)

    def opened(self) -> NativePipeline:
        """The bundle as it is now."""
        for name, file in self.manifest["files"].items():
            file["size"] = (self.folder / name).stat().st_size
        (self.folder / "bundle.json").write_text(json.dumps(self.manifest))
        return NativePipeline(self.folder)


@pytest.fixture
def hostile(tmp_path: Path) -> Hostile:
    """A copy of a bundle."""
    return Hostile(tmp_path / "bundle")


def refused(hostile: Hostile, status: int, message: str) -> None:
    """A draw fails, twice."""
    with hostile.opened() as pipeline:
        for _ in range(2):
            with pytest.raises(NativeError, match=message) as caught:
                pipeline.draw("a circle", **SMALL)
            assert caught.value.status == status


def test_graphs_of_zeros_draw(hostile: Hostile) -> None:
    """The graphs that the other tests change are right but for their change."""
    hostile.graph("time", {"time_features": ("float32", ["n", FEATURES])})
    hostile.graph("text_encoder", {"hidden_states": ("float32", ["n", 2, 77, 64])})
    with hostile.opened() as pipeline:
        assert len(pipeline.draw("a circle", **SMALL).pixels) == 1


@pytest.mark.parametrize("sizes", [[1, FEATURES], ["n", FEATURES - 1], ["n", 1, FEATURES], [1], ["n"], [0, FEATURES]])
def test_time_features_of_other_sizes(hostile: Hostile, sizes: list[int | str]) -> None:
    hostile.graph("time", {"time_features": ("float32", sizes)}, time_features=["n", FEATURES])
    refused(hostile, BUNDLE, r"time_features of time.onnx has the shape .*that bundle.json does not say")


def test_time_features_of_one_row(hostile: Hostile) -> None:
    """The manifest says that it is one, and no rule of the format forbids it."""
    hostile.graph("time", {"time_features": ("float32", [1, FEATURES])})
    refused(hostile, BACKEND, "time.onnx returned another number of rows than of timesteps")


def test_time_features_are_found_by_name(hostile: Hostile) -> None:
    """Another output in front of them is not taken for them."""
    hostile.graph("time", {"other": ("uint8", [1]), "time_features": ("float32", ["n", FEATURES])})
    other = {"name": "other", "dtype": "uint8", "shape": [1]}
    assert hostile.manifest["graphs"]["time"]["outputs"][0] == other
    with pytest.raises(NativeError, match=r"graphs\.denoise has no input 'other'"):
        hostile.opened()


@pytest.mark.parametrize("sizes", [["n", 2, 77], ["n", 1, 77, 64], ["n", 2, 77, 63], [1], ["n", 2, 77, 64, 1]])
def test_hidden_states_of_other_sizes(hostile: Hostile, sizes: list[int | str]) -> None:
    said = {"hidden_states": ["n", 2, 77, 64]}
    hostile.graph("text_encoder", {"hidden_states": ("float32", sizes)}, **said)
    refused(hostile, BUNDLE, "hidden_states of text_encoder.onnx has the shape")


def _pooled(hostile: Hostile, rows: int | str, width: int) -> None:
    """A text encoder with a pooled output, and a graph `time` that takes one of 16 numbers."""
    hostile.manifest["model"]["text_encoders"][0]["pooled"] = True
    hostile.graph(
        "text_encoder", {"hidden_states": ("float32", ["n", 2, 77, 64]), "pooled": ("float32", [rows, width])}
    )
    pooled = {"name": "pooled", "dtype": "float32", "shape": ["n", 16]}
    hostile.manifest["graphs"]["time"]["inputs"].append(pooled)
    hostile.graph("time", {"time_features": ("float32", ["n", FEATURES])})


def test_pooled_embeddings(hostile: Hostile) -> None:
    _pooled(hostile, "n", 16)
    with hostile.opened() as pipeline:
        assert len(pipeline.draw(["a circle", "a star"], **SMALL).pixels) == 2


@pytest.mark.parametrize("width", [4, 15, 17])
def test_pooled_embeddings_of_another_width(hostile: Hostile, width: int) -> None:
    _pooled(hostile, "n", width)
    refused(hostile, BUNDLE, "time takes a pooled embedding of 16 numbers")


def test_pooled_embeddings_of_other_rows(hostile: Hostile) -> None:
    _pooled(hostile, 1, 16)
    refused(hostile, BUNDLE, "text_encoder.onnx returned another number of pooled embeddings than of texts")


def test_pictures_of_other_sizes(hostile: Hostile) -> None:
    said = {"images": ["B", "8*h", "8*w", 3], "nonfinite": ["B"]}
    hostile.graph("vae_decoder", {"images": ("uint8", ["n", 8, 8, 3]), "nonfinite": ("int32", ["n"])}, **said)
    refused(hostile, BUNDLE, "images of vae_decoder.onnx has the shape")


def test_fewer_counts_than_pictures(hostile: Hostile) -> None:
    said = {"images": ["B", "8*h", "8*w", 3], "nonfinite": ["B"]}
    hostile.graph("vae_decoder", {"images": ("uint8", ["n", 64, 64, 3]), "nonfinite": ("int32", [0])}, **said)
    refused(hostile, BUNDLE, "nonfinite of vae_decoder.onnx has the shape")


def test_moments_are_found_by_name(hostile: Hostile) -> None:
    """Zeros as mean and a deviation of 1, wherever they stand among the outputs."""
    picture = np.zeros((64, 64, 3), np.uint8)
    drawn = []
    for names in (("other", "mean", "logvar"), ("logvar", "other", "mean")):
        outputs = {n: ("int32", ["n"]) if n == "other" else ("float32", ["n", 4, 8, 8]) for n in names}
        said = {n: ["B", 4, "h", "w"] for n in ("mean", "logvar")} | {"other": ["B"]}
        hostile.graph("vae_encoder", outputs, **said)  # type: ignore[arg-type]
        with hostile.opened() as pipeline:
            drawn.append(pipeline.draw("a circle", **SMALL, image=picture, strength=0.9).pixels[0])
    np.testing.assert_array_equal(drawn[0], drawn[1])


def test_tiles_that_do_not_move(hostile: Hostile) -> None:
    """Three quarters of a tile of one latent pixel are none."""
    hostile.manifest["model"]["vae_tile"] = 1
    with pytest.raises(NativeError, match=r"model\.vae_tile is out of range") as caught:
        hostile.opened()
    assert caught.value.status == BUNDLE
    hostile.manifest["model"]["vae_tile"] = 4
    with hostile.opened() as pipeline:
        assert len(pipeline.draw("a circle", **SMALL, vae_tiling=1).pixels) == 1


def test_text_encoders_of_different_lengths(hostile: Hostile) -> None:
    """Their hidden states stand side by side."""
    model, graphs = hostile.manifest["model"], hostile.manifest["graphs"]
    model["text_encoders"].append({**model["text_encoders"][0], "graph": "text_encoder_2", "max_length": 50})
    graphs["text_encoder_2"] = json.loads(json.dumps(graphs["text_encoder"]).replace("77", "50"))
    graphs["context"]["inputs"][0]["shape"][2] = 128
    with pytest.raises(NativeError, match=r"model\.text_encoders have different max_length"):
        hostile.opened()


def test_inputs_of_denoise_that_another_graph_gives(hostile: Hostile) -> None:
    output = {"name": "state", "dtype": "float32", "shape": ["n", "S", 32]}
    hostile.manifest["graphs"]["context"]["outputs"].append(output)
    with pytest.raises(NativeError, match="another graph gives its input state"):
        hostile.opened()


def test_sizes_that_no_input_gives(hostile: Hostile) -> None:
    """n is the rows of `context`, and no size of `denoise`."""
    for graph, side in (("context", "outputs"), ("denoise", "inputs")):
        for spec in hostile.manifest["graphs"][graph][side]:
            if spec["name"] == "key_00":
                spec["shape"][1] = "n"
    with hostile.opened() as pipeline, pytest.raises(NativeError) as caught:
        pipeline.draw("a circle", **SMALL)
    assert caught.value.status == BUNDLE


@pytest.mark.parametrize("power", [3, 12, 19])
def test_sizes_that_overflow(hostile: Hostile, power: int) -> None:
    for graph, side in (("context", "outputs"), ("denoise", "inputs")):
        for spec in hostile.manifest["graphs"][graph][side]:
            if spec["name"] == "key_00":
                spec["shape"][1] = "*".join("S" * power)
    with hostile.opened() as pipeline, pytest.raises(NativeError) as caught:
        pipeline.draw("a circle", **SMALL)
    assert caught.value.status == BUNDLE


def _draws_of_two(arrays: dict[str, Any]) -> None:
    """As bytes they are neither false nor true; the noise of each is missing."""
    arrays["plan.draws"] = np.full(arrays["plan.draws"].shape, 2, np.uint8).view(np.bool_)


def test_draws_that_are_neither_false_nor_true(hostile: Hostile) -> None:
    hostile.goldens(_draws_of_two)
    with hostile.opened() as pipeline, pytest.raises(NativeError, match="noise has another shape") as caught:
        pipeline.verify()
    assert caught.value.status == BUNDLE


@pytest.mark.parametrize("channels", [0, 65])
def test_golden_embeddings_of_other_widths(hostile: Hostile, channels: int) -> None:
    hostile.goldens(lambda arrays: arrays.update(embedding=np.zeros((2, 77, channels), np.float32)))
    message = f"the golden embedding has {channels} channels"
    with hostile.opened() as pipeline, pytest.raises(NativeError, match=message):
        pipeline.verify()
