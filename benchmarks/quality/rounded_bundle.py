"""A float32 copy of an fp16 or bf16 bundle in which the result of every operator is rounded to that precision.

It runs on a CPU with the errors of a GPU, which rounds results but not the sums inside an operator. ONNX Runtime's own
fp16 on a CPU skips roundings where it fuses operators, and its CPU provider has no bf16.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from latentrt.runtime import Bundle
from latentrt.runtime.bundle import File, Graph, TensorSpec
from latentrt.runtime.bundle.manifest import MANIFEST, manifest_json
from latentrt.runtime.files import sha256_of_file

HALVES = {ir.DataType.FLOAT16, ir.DataType.BFLOAT16}


def rounded_bundle(bundle: Bundle, out: Path) -> Path:
    """Write the copy, without goldens, to the new folder `out`; return `out`."""
    out.mkdir()
    manifest = bundle.manifest
    for name in manifest.files:
        if not name.startswith("golden/") and ".onnx" not in name:
            target = out / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(bundle.file(name).read_bytes())
    for graph in manifest.graphs.values():
        model = ir.load(bundle.file(graph.file))
        round_results(model.graph)
        ir.save(model, out / graph.file, external_data=f"{graph.file}.data")
    files = {
        path.relative_to(out).as_posix(): File(path.stat().st_size, sha256_of_file(path))
        for path in sorted(out.rglob("*"))
        if path.is_file()
    }
    recipe = replace(manifest.recipe, precision="fp32", vae_precision="fp32")
    graphs = {name: _in_float32(graph) for name, graph in manifest.graphs.items()}
    changed = replace(manifest, recipe=recipe, graphs=graphs, files=files, weights={}, engines=(), golden=None)
    (out / MANIFEST).write_text(manifest_json(changed), encoding="utf-8")
    return out


def round_results(graph: ir.Graph) -> None:
    """Make a graph compute in float32 and round what was fp16 or bf16 to that type, in place. Weights do not change."""
    for value in graph.initializers.values():
        if value.dtype in HALVES and value.const_value is not None:
            value.const_value = ir.tensor(value.const_value.numpy().astype(np.float32), name=value.name)
            value.dtype = ir.DataType.FLOAT
    for value in graph.inputs:
        if value.dtype in HALVES:
            value.dtype = ir.DataType.FLOAT
    for node in list(graph):
        if node.op_type == "Cast" and ir.DataType(node.attributes["to"].as_int()) in HALVES:
            node.attributes["to"] = ir.AttrInt64("to", int(ir.DataType.FLOAT))
        for value in node.outputs:
            if value.dtype in HALVES:
                _round(graph, node, value)


def _round(graph: ir.Graph, node: ir.Node, value: ir.Value) -> None:
    half = value.dtype
    assert half is not None
    value.dtype = ir.DataType.FLOAT
    down = ir.node("Cast", [value], {"to": int(half)})
    up = ir.node("Cast", [down.outputs[0]], {"to": int(ir.DataType.FLOAT)})
    result = up.outputs[0]
    down.outputs[0].dtype, result.dtype, result.shape = half, ir.DataType.FLOAT, value.shape
    for user, index in list(value.uses()):
        if user is not down:
            user.replace_input_with(index, result)
    for i, output in enumerate(graph.outputs):
        if output is value:
            name, value.name = value.name, f"{value.name}.exact"
            result.name = name
            graph.outputs[i] = result
    graph.insert_after(node, [down, up])


def _in_float32(graph: Graph) -> Graph:
    def widened(spec: TensorSpec) -> TensorSpec:
        return replace(spec, dtype="float32" if spec.dtype in ("float16", "bfloat16") else spec.dtype)

    return replace(graph, inputs=tuple(map(widened, graph.inputs)), outputs=tuple(map(widened, graph.outputs)))
