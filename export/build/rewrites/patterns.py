"""Facts about values of ONNX graphs that several rewrites ask for. Knows neither bundles nor particular kernels."""

import onnx_ir as ir

# What the CUDA kernels of ONNX Runtime's own operators are registered for, attention aside.
KERNEL_DTYPES = (ir.DataType.FLOAT, ir.DataType.FLOAT16)


def only_user(value: ir.Value) -> ir.Node | None:
    """The one node that uses a value, once; None if there are more uses, or it is an output of the graph."""
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


def made_by(value: ir.Value | None, op: str) -> ir.Node | None:
    """The node that computes a value, if it is this operator of ONNX."""
    node = None if value is None else value.producer()
    return node if node is not None and (node.domain, node.op_type) == ("", op) else None


def rank(value: ir.Value | None) -> int | None:
    """Number of dimensions; None if unknown."""
    return None if value is None or value.shape is None else len(value.shape)


def channels_of(value: ir.Value) -> int | None:
    """Size of the last dimension; None if unknown or not fixed."""
    size = value.shape[-1] if value.shape else None
    return size if isinstance(size, int) else None


def is_vector(value: ir.Value | None, like: ir.Value) -> bool:
    """Whether a value has one number of the same dtype for each channel of `like`, whose last dimension they are."""
    return (
        value is not None
        and rank(value) == 1
        and value.dtype == like.dtype
        and channels_of(value) is not None
        and channels_of(value) == channels_of(like)
    )


def same_shape(a: ir.Value, b: ir.Value) -> bool:
    """Whether two values surely have the same shape, dimension by dimension."""
    if a.shape is None or b.shape is None or len(a.shape) != len(b.shape):
        return False
    return all(x == y and (isinstance(x, int) or x.value is not None) for x, y in zip(a.shape, b.shape, strict=True))


def summands(node: ir.Node | None) -> tuple[ir.Value, ir.Value] | None:
    """The operands of an Add with two different ones of known dtype; None for any other node."""
    if node is None or (node.domain, node.op_type) != ("", "Add"):
        return None
    a, b = node.inputs
    return (a, b) if a is not None and b is not None and a is not b and a.dtype == b.dtype is not None else None


def biased(value: ir.Value) -> tuple[ir.Value, ir.Value] | None:
    """(x, bias) of a value x + bias, where bias has one number for each channel; None for any other value."""
    found = summands(value.producer())
    for x, bias in (found, found[::-1]) if found else ():
        if rank(x) == 3 and is_vector(bias, x):
            return x, bias
    return None
