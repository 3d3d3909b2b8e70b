"""Save graphs with external weights, and make float32 copies of graphs for ONNX Runtime's CPU provider."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

_FLOATS = {ir.DataType.FLOAT16, ir.DataType.BFLOAT16}
# Weights with fewer elements are not worth storing externally or as float16.
_SMALL = 256


def save_graph(model: ir.Model, path: Path, *, compact: bool) -> None:
    """Write `path` and `path.data`; weights above 1 MiB start at a multiple of 4096 bytes, so that they can be mapped.

    Args:
        compact: store float32 weights as float16 and a Cast where that is exact. Runtimes fold the Cast when they load
            the graph, at the cost of a copy.
    """
    if compact:
        _store_exact_halves(model.graph)
    # Sorted because the cut leaves them in the order of a set: the same checkpoint must give the same files.
    initializers = sorted(model.graph.initializers.values(), key=lambda value: str(value.name))
    model.graph.initializers.clear()
    for value in initializers:
        model.graph.register_initializer(value)
    has_weights = any(
        v.const_value is not None and v.const_value.nbytes > _SMALL for v in model.graph.initializers.values()
    )
    ir.save(
        model,
        path,
        external_data=f"{path.name}.data" if has_weights else None,
        size_threshold_bytes=_SMALL,
        alignment=4096,
    )


@dataclass(frozen=True, slots=True)
class Stored:
    """How a weight is stored: dtype, shape, and offset in the external data; None if it is in the ONNX file."""

    dtype: str
    shape: tuple[int, ...]
    offset: int | None


def stored_weights(path: Path) -> dict[str, Stored]:
    """Initializer of a saved graph -> how it is stored."""
    graph = ir.load(path).graph
    return {
        str(name): Stored(
            dtype_name(value.dtype),
            tuple(value.const_value.shape.numpy()),
            value.const_value.offset if isinstance(value.const_value, ir.ExternalTensor) else None,
        )
        for name, value in graph.initializers.items()
        if value.const_value is not None and value.dtype is not None
    }


def dtype_name(dtype: ir.DataType) -> str:
    """The dtype's name in manifests and numpy, such as "float32", "bfloat16" or "int64"."""
    return "float32" if dtype == ir.DataType.FLOAT else dtype.name.lower()


def _store_exact_halves(graph: ir.Graph) -> None:
    casts = []
    for value in list(graph.initializers.values()):
        tensor = value.const_value
        if tensor is None or tensor.dtype != ir.DataType.FLOAT or tensor.size < _SMALL:
            continue
        full = tensor.numpy()
        with np.errstate(over="ignore"):
            half = full.astype(np.float16)
        if not np.array_equal(half.astype(np.float32), full):
            continue
        name = str(value.name)
        cast = ir.node("Cast", [value], {"to": int(ir.DataType.FLOAT)}, name=f"{name}.cast")
        full_value = cast.outputs[0]
        full_value.name, full_value.shape = f"{name}.float32", value.shape
        full_value.type = ir.TensorType(ir.DataType.FLOAT)
        for node, index in list(value.uses()):
            if node is not cast:
                node.replace_input_with(index, full_value)
        value.type, value.const_value = ir.TensorType(ir.DataType.FLOAT16), ir.tensor(half, name=name)
        casts.append(cast)
    if casts:
        graph.insert_before(graph[0], casts)


def load_in_full(path: Path) -> ir.Model:
    """Load a graph with the weights of compact bundles as float32, without their Casts."""
    model = ir.load(path)
    for node in [node for node in model.graph if node.op_type == "Cast"]:
        stored, full = node.inputs[0], node.outputs[0]
        if stored is None or stored.const_value is None or stored.dtype != ir.DataType.FLOAT16:
            continue
        if full.dtype != ir.DataType.FLOAT:
            continue
        name = str(stored.name)
        tensor = ir.tensor(stored.const_value.numpy().astype(np.float32), name=name)
        ir.convenience.replace_all_uses_with(full, stored)
        model.graph.remove(node, safe=True)
        stored.type, stored.const_value = ir.TensorType(ir.DataType.FLOAT), tensor
    return model


def float32_twin(path: Path, out: Path) -> None:
    """Write a copy of a graph with float32 in place of float16 and bfloat16, for weights, tensors and casts.

    ONNX Runtime's CPU kernels do not support bfloat16; the copy allows checking what the graph computes.
    """
    model = ir.load(path)
    for value in model.graph.initializers.values():
        if value.const_value is not None and value.dtype in _FLOATS:
            value.const_value = ir.tensor(value.const_value.numpy().astype(np.float32), name=value.name)
            value.dtype = ir.DataType.FLOAT
    for value in (*model.graph.inputs, *(o for node in model.graph for o in node.outputs)):
        if value.dtype in _FLOATS:
            value.dtype = ir.DataType.FLOAT
    for node in model.graph:
        if node.op_type == "Cast" and node.attributes["to"].as_int() in {int(d) for d in _FLOATS}:
            node.attributes["to"] = ir.AttrInt64("to", int(ir.DataType.FLOAT))
    ir.save(model, out, external_data=f"{out.name}.data")
