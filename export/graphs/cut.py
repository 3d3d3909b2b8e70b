"""Cut a denoiser graph in three by data dependency: what depends on the timestep only, on the text only, and the rest.

Knows only dependencies and no layer names, so it cuts any denoiser.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes
from onnx_ir.tape import Tape

from latentrt.runtime.errors import ExportError

_PASS_THROUGH = {"Reshape", "Transpose", "Unsqueeze", "Squeeze", "Mul", "Div", "Cast", "Identity", "Expand"}
_ROWS = "number of rows"
_INTEGERS = {ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL}


@dataclass(frozen=True, slots=True)
class Cut:
    """The three graphs of a denoiser.

    Attributes:
        time: time inputs -> `time_features` (n, F), all features of the timestep that the loop reads, concatenated.
        context: context inputs -> `key_00`, `value_00`, … in graph order.
        loop: loop inputs, `time_features`, `key_*`, `value_*` -> the denoiser's output.
    """

    time: ir.Model
    context: ir.Model
    loop: ir.Model


def cut_denoiser(model: ir.Model, *, time_inputs: Collection[str], context_inputs: Collection[str]) -> Cut:
    """Cut `model`, which is modified; inputs that are in neither collection belong to the loop.

    Raises `ExportError` if a group of inputs is empty or unused, or if anything but features would cross the cut.
    """
    graph = model.graph
    loop_inputs = [v for v in graph.inputs if v.name not in time_inputs and v.name not in context_inputs]
    own_inputs = [v for v in graph.inputs if v.name in time_inputs]
    if not loop_inputs:
        raise ExportError("the loop has no inputs: every input is a time or a context input")
    _rebase_shapes(graph, loop_inputs)
    kinds = _dependencies(graph, frozenset(time_inputs), frozenset(context_inputs))
    time_cut = _crossing(graph, kinds, "time")
    context_cut = _crossing(graph, kinds, "context")
    for value in (*time_cut, *context_cut):
        if value.dtype in _INTEGERS:
            raise ExportError(f"{value.name!r} ({value.dtype}) would cross the cut; only floating-point features may")
    _name_context(context_cut)
    loop = _loop_model(model, loop_inputs, time_cut, context_cut)
    context = _extract(model, sorted(context_inputs), context_cut, "context")
    _rebase_shapes(graph, own_inputs)  # `loop` is already a copy
    time = _extract(model, [v.name or "" for v in own_inputs], time_cut, "time")
    _pack(time, time_cut)
    return Cut(time=time, context=context, loop=loop)


def _rebase_shapes(graph: ir.Graph, inputs: Sequence[ir.Value]) -> None:
    """Read each dynamic dimension from one of `inputs` if one has it, so that shapes do not depend on other inputs."""
    sources: dict[str, tuple[ir.Value, int]] = {}
    for value in inputs:
        assert value.shape is not None
        for axis, dimension in enumerate(value.shape):
            if not isinstance(dimension, int) and dimension.value:
                sources.setdefault(dimension.value, (value, axis))
    for node in graph:
        if node.op_type != "Shape" or node.inputs[0] is None or node.inputs[0].shape is None:
            continue
        shape = node.inputs[0].shape
        start, end = (_int_attribute(node, "start", 0), _int_attribute(node, "end", len(shape)))
        if end - start != 1 or isinstance(shape[start], int):
            continue
        symbol = shape[start].value  # type: ignore[union-attr]
        if symbol in sources:
            value, axis = sources[symbol]
            node.replace_input_with(0, value)
            node.attributes["start"] = ir.AttrInt64("start", axis)
            node.attributes["end"] = ir.AttrInt64("end", axis + 1)


def _int_attribute(node: ir.Node, name: str, default: int) -> int:
    return node.attributes[name].as_int() if name in node.attributes else default


def _dependencies(graph: ir.Graph, time: frozenset[str], context: frozenset[str]) -> dict[ir.Value, str]:
    """Value -> "time", "context" or "loop"; values that depend on no input are omitted.

    The number of rows does not count as a dependency on the loop, because each graph can read it from its own inputs.
    """
    inputs: dict[ir.Value, frozenset[str]] = {v: frozenset([v.name or ""]) for v in graph.inputs}
    kinds: dict[ir.Value, str] = {}
    for node in graph:
        union = frozenset[str]().union(*(inputs.get(v, frozenset()) for v in node.inputs if v is not None))
        for value in node.outputs:
            inputs[value] = frozenset([_ROWS]) if _reads_rows(node) else union
    for value, names in inputs.items():
        if names - {_ROWS}:
            kinds[value] = "time" if names <= time | {_ROWS} else "context" if names <= context else "loop"
    return kinds


def _reads_rows(node: ir.Node) -> bool:
    shape = node.inputs[0].shape if node.op_type == "Shape" and node.inputs[0] is not None else None
    end = _int_attribute(node, "end", len(shape or ()))
    return shape is not None and _int_attribute(node, "start", 0) == 0 and end == 1


def _crossing(graph: ir.Graph, kinds: dict[ir.Value, str], kind: str) -> list[ir.Value]:
    """Values of `kind` that the loop reads, ordered by their first use."""
    found: dict[ir.Value, None] = {}
    for node in graph:
        if kinds.get(node.outputs[0]) == "loop":
            found.update((v, None) for v in node.inputs if v is not None and kinds.get(v) == kind)
    if not found:
        raise ExportError(f"the denoiser does not depend on its {kind} inputs")
    return list(found)


def _name_context(values: Sequence[ir.Value]) -> None:
    """Name the context's tensors `key_NN` and `value_NN`, by the attention operand that each one becomes."""
    counts: dict[str, int] = {}
    for value in values:
        role = _attention_operand(value)
        value.name = f"{role}_{counts.setdefault(role, 0):02d}"
        counts[role] += 1


def _attention_operand(value: ir.Value) -> str:
    """Follow a value through reshapes to its attention: "key", "value", or "context" for any other use."""
    for node, index in value.uses():
        if node.op_type == "Attention":
            return {1: "key", 2: "value"}.get(index, "context")
        if node.op_type == "MatMul":
            other = node.inputs[1 - index]
            return "value" if index == 1 and other is not None and _comes_from_softmax(other) else "key"
        if node.op_type in _PASS_THROUGH:
            return _attention_operand(node.outputs[0])
    return "context"


def _comes_from_softmax(value: ir.Value) -> bool:
    node = value.producer()
    while node is not None and node.op_type in _PASS_THROUGH and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    return node is not None and node.op_type == "Softmax"


def _loop_model(
    model: ir.Model, loop_inputs: Sequence[ir.Value], time_cut: Sequence[ir.Value], context_cut: Sequence[ir.Value]
) -> ir.Model:
    """The loop's graph, which splits `time_features` at its start."""
    names = [v.name or "" for v in (*loop_inputs, *time_cut, *context_cut)]
    loop = _model(model, ir.convenience.extract(model.graph, names, [v.name or "" for v in model.graph.outputs]))
    graph = loop.graph
    graph.name = "denoise"
    pieces = {v.name: v for v in graph.inputs}
    tape = Tape()
    widths = [_width(v) for v in time_cut]
    features = ir.Value(
        name="time_features", type=ir.TensorType(_common_dtype(time_cut)), shape=ir.Shape(["n", sum(widths)])
    )
    sizes = tape.initializer(ir.tensor(np.array(widths, np.int64)), "time_feature_widths")
    split_values = tape.op_multi_out("Split", [features, sizes], {"axis": 1}, num_outputs=len(widths))
    for number, (value, piece) in enumerate(zip(time_cut, split_values, strict=True)):
        old = pieces[value.name]
        shape = ir.tensor(np.array([-1, *_trailing(old)], np.int64))
        target = tape.initializer(shape, f"time_feature_shape_{number:02d}")
        unpacked = tape.op("Reshape", [piece, target])
        unpacked.type, unpacked.shape = old.type, old.shape
        graph.inputs.remove(old)
        ir.convenience.replace_all_uses_with(old, unpacked)
    first = graph[0]
    graph.insert_before(first, tape.nodes)
    for value in tape.initializers:
        graph.register_initializer(value)
    position = len(loop_inputs)
    graph.inputs.insert(position, features)
    return loop


def _pack(time: ir.Model, time_cut: Sequence[ir.Value]) -> None:
    """Concatenate the outputs of the time graph to `time_features` (n, F)."""
    graph, tape = time.graph, Tape()
    dtype = _common_dtype(time_cut)
    flat = []
    for value in graph.outputs:
        if len(value.shape or ()) != 2:
            value = tape.op("Flatten", [value], {"axis": 1})
        flat.append(value)
    packed = tape.op("Concat", flat, {"axis": 1})
    packed.name, packed.dtype = "time_features", dtype
    packed.shape = ir.Shape(["n", sum(_width(v) for v in time_cut)])
    graph.extend(tape.nodes)
    graph.outputs[:] = [packed]


def _trailing(value: ir.Value) -> list[int]:
    assert value.shape is not None
    trailing = list(value.shape)[1:]
    if not all(isinstance(d, int) for d in trailing):
        raise ExportError(f"time feature {value.name!r} has shape {value.shape}; all but the first must be fixed")
    return [d for d in trailing if isinstance(d, int)]


def _width(value: ir.Value) -> int:
    return int(np.prod(_trailing(value)))


def _common_dtype(values: Sequence[ir.Value]) -> ir.DataType:
    dtypes = {v.dtype for v in values}
    if len(dtypes) != 1 or (dtype := dtypes.pop()) is None:
        raise ExportError(f"time features must have the same dtype, not {sorted(map(str, dtypes))}")
    return dtype


def _extract(model: ir.Model, inputs: Sequence[str], outputs: Sequence[ir.Value], name: str) -> ir.Model:
    result = _model(model, ir.convenience.extract(model.graph, inputs, [v.name or "" for v in outputs]))
    result.graph.name = name
    return result


def _model(model: ir.Model, graph: ir.Graph) -> ir.Model:
    result = ir.Model(graph, ir_version=model.ir_version, producer_name="latentrt")
    passes.RemoveUnusedNodesPass()(result)
    return result
