"""The layers of a graph that can be quantized, and the rule that chooses among them.

Kinds follow from what a layer is connected to, never from its name, so every model family is covered.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

import onnx_ir as ir

from latentrt.runtime.errors import InputError

CONVOLUTION, FEED_FORWARD, ATTENTION_INPUT, LINEAR = "convolution", "feed-forward", "attention input", "linear"
# Level -> the kind that it adds. The levels are those of NVIDIA's Model Optimizer; its fourth, attention itself, needs
# an operator that ONNX has not.
LEVELS = {1.0: CONVOLUTION, 2.0: FEED_FORWARD, 2.5: ATTENTION_INPUT, 3.0: LINEAR}
_WEIGHTED = ("Conv", "MatMul", "Gemm")
_FLOATS = {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16}
# Weights with fewer elements are no work, and so no gain.
_SMALL = 256
_ACTIVATIONS = {"Gelu", "Erf", "Sigmoid", "Tanh"}
# What a value passes unchanged, or changed by constants alone.
_RESHAPES = {"Reshape", "Transpose", "Split", "Slice", "Squeeze", "Unsqueeze", "Cast", "Identity"}
_ELEMENTWISE = {"Add", "Mul", "Div", "Sub"}


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """A convolution or product with a constant weight.

    Attributes:
        node: its node; input 0 is the activation, input 1 the weight.
        weight: the initializer of the weight, which a Cast may follow.
        kind: one of the values of `LEVELS`.
        kept: why the rule leaves it in float; empty if it does not.
    """

    node: ir.Node
    weight: ir.Value
    kind: str
    kept: str

    @property
    def name(self) -> str:
        """The name of the weight."""
        return str(self.weight.name)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight."""
        assert self.weight.const_value is not None
        return tuple(self.weight.const_value.shape.numpy())

    @property
    def channels(self) -> int:
        """The axis of the weight that counts output channels."""
        transposed = self.node.attributes.get("transB")
        return 0 if self.node.op_type == "Conv" or (transposed is not None and transposed.as_int()) else 1


def find_layers(graph: ir.Graph) -> list[Layer]:
    """All layers with a constant weight, in the order of the graph."""
    weighted = {node: weight for node in graph if (weight := _weight(node)) is not None}
    return [
        Layer(node, weight, _kind(node), _kept_by_rule(node, weight, weighted)) for node, weight in weighted.items()
    ]


def chosen(layers: Iterable[Layer], level: float) -> list[Layer]:
    """The layers that are quantized at a level. Raises `InputError` for an unknown level."""
    kinds = kinds_at(level)
    return [layer for layer in layers if layer.kind in kinds and not layer.kept]


def kinds_at(level: float) -> set[str]:
    """The kinds of layers that are quantized at a level. Raises `InputError` for an unknown level."""
    if level not in LEVELS:
        known = ", ".join(f"{number:g} ({kind})" for number, kind in LEVELS.items())
        raise InputError(f"level is {level:g}; expected one of {known}; each adds to those before it")
    return {kind for number, kind in LEVELS.items() if number <= level}


def _weight(node: ir.Node) -> ir.Value | None:
    """The initializer behind input 1 of a weighted layer with a float activation; None for other nodes."""
    if node.op_type not in _WEIGHTED or len(node.inputs) < 2:
        return None
    activation, weight = node.inputs[0], constant(node.inputs[1])
    if activation is None or activation.const_value is not None:
        return None
    if weight is None or weight.const_value is None or weight.dtype not in _FLOATS or len(weight.const_value.shape) < 2:
        return None
    return weight


def constant(value: ir.Value | None) -> ir.Value | None:
    """The constant behind a value, which a Cast may follow; None if the value is computed."""
    producer = None if value is None else value.producer()
    source = producer.inputs[0] if producer is not None and producer.op_type == "Cast" else value
    return None if source is None or source.const_value is None else source


def _kept_by_rule(node: ir.Node, weight: ir.Value, weighted: dict[ir.Node, ir.Value]) -> str:
    assert weight.const_value is not None
    shape = weight.const_value.shape.numpy()
    if weight.const_value.size < _SMALL:
        return "few weights"
    if not _reaches(node, _before, weighted.__contains__):
        return "first layer"
    if not _reaches(node, _after, weighted.__contains__):
        return "last layer"
    if node.op_type == "Conv" and set(shape[2:]) == {1} and shape[0] != shape[1]:
        return "shortcut"
    return ""


def _kind(node: ir.Node) -> str:
    if node.op_type == "Conv":
        return CONVOLUTION
    if _reaches(node, _after_constants, _is_attention):
        return ATTENTION_INPUT
    is_activation = lambda other: other.op_type in _ACTIVATIONS  # noqa: E731
    if _reaches(node, _after_constants, is_activation) or _reaches(node, _before_elementwise, is_activation):
        return FEED_FORWARD
    return LINEAR


def _is_attention(node: ir.Node) -> bool:
    """Whether it is attention, as one operator, or as its first or last product."""
    return node.op_type == "Attention" or (node.op_type == "MatMul" and len(_computed(node)) == 2)


def _reaches(node: ir.Node, step: Callable[[ir.Node], Iterator[ir.Node]], found: Callable[[ir.Node], bool]) -> bool:
    """Whether steps from a node lead to one that is looked for, besides itself."""
    seen, waiting = {node}, [*step(node)]
    while waiting:
        other = waiting.pop()
        if other in seen:
            continue
        if found(other):
            return True
        seen.add(other)
        waiting += step(other)
    return False


def _after(node: ir.Node) -> Iterator[ir.Node]:
    return chain.from_iterable((user for user, _ in value.uses()) for value in node.outputs)


def _before(node: ir.Node) -> Iterator[ir.Node]:
    return (producer for value in node.inputs if value is not None and (producer := value.producer()) is not None)


def _after_constants(node: ir.Node) -> Iterator[ir.Node]:
    """Users of a layer's output, and of what only constants and reshapes have changed since."""
    if node.op_type in _RESHAPES or node.op_type in _WEIGHTED:
        return _after(node)
    return _after(node) if node.op_type in _ELEMENTWISE and len(_computed(node)) == 1 else iter(())


def _before_elementwise(node: ir.Node) -> Iterator[ir.Node]:
    """Producers of a layer's activation, through elementwise operators and reshapes."""
    if node.op_type in _WEIGHTED:
        producer = None if node.inputs[0] is None else node.inputs[0].producer()
        return iter(() if producer is None or producer.op_type in _WEIGHTED else (producer,))
    passes = node.op_type in _RESHAPES or node.op_type in _ELEMENTWISE
    return (other for other in _before(node) if other.op_type not in _WEIGHTED) if passes else iter(())


def _computed(node: ir.Node) -> list[ir.Value]:
    """The inputs that are not constant."""
    return [value for value in node.inputs if value is not None and constant(value) is None]
