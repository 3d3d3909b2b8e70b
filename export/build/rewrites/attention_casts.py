"""Let Attention read 16-bit operands that are cast to float32 for it, so that ONNX Runtime has a fused CUDA kernel.

Models with `upcast_attention` are exported so, as products of queries and keys leave the range of float16. The fused
kernels sum these products in float32 anyway, and there is none for float32 operands. Knows nothing of bundles.
"""

import onnx_ir as ir

from .patterns import only_user

WIDEST = 256  # channels of a head that the kernels take, a multiple of 8
HALVES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
MOVES = ("Transpose", "Reshape")


def drop_attention_casts(model: ir.Model) -> int:
    """Feed Attention with what is cast for it, in place; returns how many."""
    changed = 0
    for node in [node for node in model.graph if node.op_type == "Attention"]:
        sources = [_before_cast(value) for value in node.inputs]
        if len(sources) != 3 or None in sources or not _has_kernel(node) or len({s.dtype for s in sources if s}) != 1:
            continue
        casts = [value.producer() for value in node.inputs if value is not None]
        for i, source in enumerate(sources):
            node.replace_input_with(i, source)
        unused = {cast for cast in casts if cast is not None and not cast.outputs[0].uses()}
        model.graph.remove(unused, safe=True)
        _cast_output(model.graph, node)
        changed += 1
    return changed


def _before_cast(value: ir.Value | None) -> ir.Value | None:
    """The 16-bit value that a float32 one is cast from; None if it is not."""
    producer = None if value is None else value.producer()
    if producer is None or producer.op_type != "Cast" or value is None or value.dtype != ir.DataType.FLOAT:
        return None
    source = producer.inputs[0]
    return source if source is not None and source.dtype in HALVES else None


def _has_kernel(node: ir.Node) -> bool:
    query = node.inputs[0]
    width = query.shape[-1] if query is not None and query.shape is not None else None
    return isinstance(width, int) and width <= WIDEST and width % 8 == 0 and len(node.outputs) == 1


def _cast_output(graph: ir.Graph, node: ir.Node) -> None:
    """Let what only moves the output do so in 16 bits, up to a cast back, which goes; else cast the output."""
    output, source = node.outputs[0], node.inputs[0]
    assert source is not None
    assert source.dtype is not None
    moved = [output]
    while (user := only_user(moved[-1])) is not None and user.op_type in MOVES and user.inputs[0] is moved[-1]:
        moved.append(user.outputs[0])
    if user is not None and user.op_type == "Cast" and user.attributes["to"].as_int() == source.dtype:
        for value in moved:
            value.dtype = source.dtype
        if user.outputs[0].is_graph_output():
            moved[-1].name = user.outputs[0].name
        ir.convenience.replace_all_uses_with(user.outputs[0], moved[-1], replace_graph_outputs=True)
        graph.remove(user, safe=True)
        return
    uses = tuple(output.uses())
    cast = ir.node("Cast", [output], {"to": int(ir.DataType.FLOAT)}, name=f"{output.name}.float32")
    cast.outputs[0].name = f"{output.name}.float32"
    cast.outputs[0].dtype, cast.outputs[0].shape = ir.DataType.FLOAT, output.shape
    for reader, index in uses:
        reader.replace_input_with(index, cast.outputs[0])
    output.dtype = source.dtype
    graph.insert_after(node, cast)
