"""The error of one GroupNorm with SiLU in float16, on every backend, for the sizes of Stable Diffusion 1.5 and XL.

Pictures in fp16 do not tell which operator costs them precision. A group norm sums up to a million values, so one that
does so in float16 shows here at once. The graph belongs to a copy of the checked bundle, so backends build and run it
as they do all others.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from latentrt.export.build.ort_graphs import build_ort_graphs
from latentrt.runtime import Pipeline
from latentrt.runtime.bundle import Bundle, Graph, TensorSpec
from latentrt.runtime.bundle.manifest import MANIFEST, File, Range, manifest_json
from latentrt.runtime.errors import BackendError
from latentrt.runtime.files import sha256_of_file

from .carried import NORMS
from .places import Place, on_each_backend
from .report import Report

GROUPS = 32
# The result is rounded to float16, an error of 2^-12 to 2^-11, and SiLU multiplies two such numbers.
LIMIT = 4e-3


@dataclass(frozen=True, slots=True)
class Case:
    """A group norm: channels, height and width of its input, and epsilon."""

    channels: int
    side: int
    epsilon: float = 1e-5

    @property
    def name(self) -> str:
        """Name of the graph's output; the input has an `x_` before it."""
        return f"norm_{self.channels}_{self.side}"

    @property
    def group(self) -> int:
        """Values of a group."""
        return self.channels // GROUPS * self.side**2


CASES = (
    *(
        Case(320, 64),
        Case(960, 64),
        Case(640, 32),
        Case(1920, 32),
        Case(1280, 16),
        Case(2560, 16),
        Case(1280, 8),
    ),  # 1.5
    *(Case(320, 128), Case(960, 128), Case(640, 64), Case(1920, 64), Case(1280, 32), Case(2560, 32)),
    *(Case(512, 64, 1e-6), Case(128, 512, 1e-6)),
)


def run(place: Place, report: Report) -> None:
    """Check each size: the largest difference from float64, over the largest value."""
    graph = place.graphs / NORMS
    content = graph.read_bytes() if graph.is_file() else norms_graph()
    bundle = norms_bundle(place.bundle, place.work / "bundles" / "norms", content)
    inputs = {f"x_{case.name}": values(case) for case in CASES}
    expected = {case: exact_norm(case, inputs[f"x_{case.name}"]) for case in CASES}

    def compare(label: str, pipe: Pipeline) -> None:
        found = pipe.run("norms", inputs)
        for case, exact in expected.items():
            error = float(np.abs(found[case.name] - exact).max() / np.abs(exact).max())
            report.at_most(f"{label}: {case.channels} × {case.side}², {case.group:,} values a group", error, LIMIT)

    place = replace(place, bundle=bundle)
    on_each_backend(place, report, compare, engines=_engines(place, report))
    if "onnxruntime" in place.backends and place.device == "cuda":
        folder = place.engines("norms-onnxruntime")
        try:
            list(build_ort_graphs(bundle, devices=["cuda"], engines=folder, graphs=["norms"]))
            with Pipeline.load(bundle, backend="onnxruntime", device="cuda", engines=folder) as pipe:
                compare("onnxruntime, its own GroupNorm", pipe)
        except BackendError as error:  # onnx_ir is missing, or the backend has been left out above
            report.note(f"onnxruntime's own GroupNorm: {error}")


def _engines(place: Place, report: Report) -> Path:
    for backend in place.backends:
        if backend != "onnxruntime":
            try:
                place.build(backend, place.engines("norms"))
            except Exception as error:  # any error is the finding: this library does not support this GPU
                report.note(f"{backend} does not build: {type(error).__name__}: {error}")
    return place.engines("norms")


def values(case: Case) -> NDArray[np.float32]:
    """(1, C, side, side), exact in float16: channels far from zero, as in a trained network."""
    rng = np.random.default_rng(case.channels + case.side)
    drawn = rng.standard_normal((1, case.channels, case.side, case.side), np.float32)
    centres = rng.uniform(-8, 8, (case.channels, 1, 1))
    return (drawn + centres).astype(np.float16).astype(np.float32)


def scales(case: Case) -> Mapping[str, NDArray[np.float16]]:
    """Scale and bias of each channel."""
    rng = np.random.default_rng(case.channels)
    return {
        "scale": rng.uniform(0.5, 1.5, case.channels).astype(np.float16),
        "bias": rng.uniform(-1, 1, case.channels).astype(np.float16),
    }


def exact_norm(case: Case, x: NDArray[np.float32]) -> NDArray[np.float64]:
    """GroupNormalization and SiLU in float64."""
    grouped = x.astype(np.float64).reshape(1, GROUPS, -1)
    centred = grouped - grouped.mean(-1, keepdims=True)
    normal = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + case.epsilon)
    scale, bias = (part.astype(np.float64)[:, None, None] for part in scales(case).values())
    result: NDArray[np.float64] = normal.reshape(x.shape) * scale + bias
    return result / (1 + np.exp(-result))


def norms_graph() -> bytes:
    """ONNX graph of all cases: each input is rounded to float16, normalized, and multiplied with its sigmoid."""
    import onnx_ir as ir

    inputs, nodes, outputs, constants = [], [], [], []
    for case in CASES:
        shape = ir.Shape(["B", case.channels, case.side, case.side])
        x = ir.Value(name=f"x_{case.name}", shape=shape, type=ir.TensorType(ir.DataType.FLOAT))
        parts = [ir.Value(name=f"{case.name}.{n}", const_value=ir.tensor(v)) for n, v in scales(case).items()]
        for value in parts:
            assert value.const_value is not None
            value.shape, value.type = ir.Shape([case.channels]), ir.TensorType(value.const_value.dtype)
        attributes = {"num_groups": GROUPS, "epsilon": case.epsilon}
        half = ir.node("Cast", [x], {"to": int(ir.DataType.FLOAT16)}, name=f"{case.name}.half")
        norm = ir.node("GroupNormalization", [half.outputs[0], *parts], attributes, name=f"{case.name}.norm")
        gate = ir.node("Sigmoid", norm.outputs, name=f"{case.name}.sigmoid")
        silu = ir.node("Mul", [norm.outputs[0], gate.outputs[0]], name=f"{case.name}.silu")
        full = ir.node("Cast", silu.outputs, {"to": int(ir.DataType.FLOAT)}, name=f"{case.name}.full")
        for node in (half, norm, gate, silu, full):
            node.outputs[0].name, node.outputs[0].shape = node.name, shape
            node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT16)
        full.outputs[0].name, full.outputs[0].type = case.name, x.type
        inputs.append(x)
        nodes += [half, norm, gate, silu, full]
        outputs += full.outputs
        constants += parts
    graph = ir.Graph(inputs, outputs, nodes=nodes, initializers=constants, opset_imports={"": 23}, name="norms")
    content: bytes = ir.to_proto(ir.Model(graph, ir_version=10)).SerializeToString()
    return content


def norms_bundle(source: Path, folder: Path, content: bytes) -> Path:
    """A copy of a bundle with the graph `norms`; made anew each time, as it takes no time."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source, folder)
    file = folder / "norms.onnx"
    file.write_bytes(content)
    manifest = Bundle.open(source).manifest
    outputs = tuple(TensorSpec(c.name, "float32", ("B", c.channels, c.side, c.side)) for c in CASES)
    inputs = tuple(replace(spec, name=f"x_{spec.name}") for spec in outputs)
    graph = Graph(file.name, inputs, outputs, {"B": Range(1, None)})
    files = {**manifest.files, file.name: File(len(content), sha256_of_file(file))}
    manifest = replace(manifest, graphs={**manifest.graphs, "norms": graph}, files=files)
    (folder / MANIFEST).write_text(manifest_json(manifest), encoding="utf-8")
    return folder
