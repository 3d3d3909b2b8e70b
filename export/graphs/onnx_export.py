"""Export a torch module to ONNX and simplify the graph, without losing the names of parameters.

Knows tensors and graphs; knows nothing of Stable Diffusion. PyTorch's exporter transposes linear weights and merges
equal ones, which leaves anonymous initializers. Here each parameter keeps its own named initializer, so that LoRA and
refitting can find it.
"""

import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes
import torch
from onnxscript import optimizer

from latentrt.runtime.errors import ExportError

TRANSPOSED = ".transposed"
OPSETS = (18, 23)


@dataclass(frozen=True, slots=True)
class TensorInput:
    """An input of a module to export: an example tensor, and dimension index -> name of its dynamic dimensions."""

    name: str
    example: torch.Tensor
    dynamic: Mapping[int, str]

    @property
    def parts(self) -> "tuple[TensorInput, ...]":
        """Itself, as a `TupleInput` has several."""
        return (self,)


@dataclass(frozen=True, slots=True)
class TupleInput:
    """A parameter of a module that takes a tuple of tensors; each is an input of the graph."""

    name: str
    parts: tuple[TensorInput, ...]


def onnx_from_module(
    module: torch.nn.Module, inputs: Sequence[TensorInput | TupleInput], outputs: Sequence[str], *, opset: int
) -> ir.Model:
    """Export `module` and return its simplified ONNX graph.

    Args:
        module: in eval mode; takes `inputs` by name, in the order of its forward's parameters, and returns a tensor or
            a tuple of tensors.
        outputs: names of the returned tensors.
        opset: 23 keeps attention and group normalization as single nodes; 18 is supported by more runtimes.

    Each initializer is a parameter of the module under its own name, or its transpose with `.transposed` appended, or
    a constant. Raises `ExportError` for an unsupported opset, and if a dynamic dimension would become fixed.
    """
    check_opset(opset)
    tensors = [part for given in inputs for part in given.parts]
    with _quiet(), torch.no_grad():
        # Captured here because torch.onnx.export would also add run-time assertions. For a UNet that fails after the
        # full trace; its fallback, a trace of the bytecode, takes longer and gives the same graph.
        captured = torch.export.export(
            module,
            (),
            kwargs={i.name: _example(i) for i in inputs},
            dynamic_shapes={i.name: _dynamic(i) for i in inputs},
            strict=False,
        )
        program = torch.onnx.export(
            captured,
            dynamo=True,
            opset_version=opset,
            optimize=False,
            verbose=False,
            input_names=[i.name for i in tensors],
            output_names=list(outputs),
        )
    if program is None:
        raise ExportError("torch.onnx.export returned no program; run it with verbose=True for the reason")
    model: ir.Model = program.model
    _name_dimensions(model.graph, {i.name: i.dynamic for i in tensors})
    simplify(model)
    return model


def check_opset(opset: int) -> None:
    """Raise `ExportError` for an opset that is not supported."""
    if opset not in OPSETS:
        raise ExportError(f"opset {opset} is not supported; expected one of {', '.join(map(str, OPSETS))}")


def _example(given: TensorInput | TupleInput) -> Any:
    return tuple(map(_example, given.parts)) if isinstance(given, TupleInput) else given.example


def _dynamic(given: TensorInput | TupleInput) -> Any:
    if isinstance(given, TupleInput):
        return tuple(map(_dynamic, given.parts))
    return dict.fromkeys(given.dynamic, torch.export.Dim.AUTO)


def simplify(model: ir.Model) -> None:
    """Fold constants and remove dead and duplicate nodes, in place; parameters keep their names.

    Parameters become graph inputs during the optimization, so that the optimizer can neither fold nor merge them.
    """
    graph = model.graph
    passes.InlinePass()(model)
    _fold_transposes(graph)
    parameters = [v for v in graph.initializers.values() if v.uses()]
    tensors = [v.const_value for v in parameters]
    own_inputs = len(graph.inputs)
    graph.initializers.clear()
    for value in parameters:
        value.const_value = None
        graph.inputs.append(value)
    with _quiet():
        optimizer.optimize_ir(model)
    del graph.inputs[own_inputs:]
    for value, tensor in zip(parameters, tensors, strict=True):
        if value.uses():
            value.const_value = tensor
            graph.register_initializer(value)
    passes.ClearMetadataAndDocStringPass()(model)


def _fold_transposes(graph: ir.Graph) -> None:
    """Replace Transpose(parameter) by an initializer with the transposed matrix."""
    for node in list(graph):
        source = node.inputs[0] if node.op_type == "Transpose" else None
        if source is None or source.name not in graph.initializers or source.const_value is None:
            continue
        if list(node.attributes["perm"].as_ints()) != [1, 0]:
            continue
        name = f"{source.name}{TRANSPOSED}"
        if name not in graph.initializers:
            graph.register_initializer(_transposed(source.const_value, name))
        ir.convenience.replace_all_uses_with(node.outputs[0], graph.initializers[name])
        graph.remove(node, safe=True)


def _transposed(tensor: ir.TensorProtocol, name: str) -> ir.Value:
    """An initializer that is transposed when it is written, so that no copy is kept in memory before."""
    rows, columns = tensor.shape.numpy()
    shape = ir.Shape([columns, rows])

    def transpose() -> ir.TensorProtocol:
        return ir.tensor(np.ascontiguousarray(tensor.numpy().T))

    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=shape)
    value.const_value = ir.LazyTensor(transpose, tensor.dtype, shape, name=name)
    return value


def _name_dimensions(graph: ir.Graph, dynamic: Mapping[str, Mapping[int, str]]) -> None:
    """Rename the exporter's symbols (`s27`) to the given names; raises `ExportError` for a fixed one."""
    names: dict[str, str] = {}
    for value in graph.inputs:
        assert value.shape is not None
        for axis, name in dynamic.get(value.name or "", {}).items():
            # A fixed dimension is a number, or a symbol whose name is a number.
            symbol = str(value.shape[axis])
            if symbol.isdigit():
                raise ExportError(
                    f"dimension {axis} ({name!r}) of input {value.name!r} was fixed to {symbol} by the export, "
                    "because the module's code depends on its value"
                )
            names.setdefault(symbol, name)
    for value in _values(graph):
        if value.shape is not None:
            value.shape = ir.Shape([d if isinstance(d, int) else _renamed(d.value, names) for d in value.shape])


def _renamed(symbol: str | None, names: Mapping[str, str]) -> str | None:
    return None if symbol is None else re.sub(r"[A-Za-z_]\w*", lambda m: names.get(m[0], m[0]), symbol)


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    for node in graph:
        yield from node.outputs


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the exporter's messages about its internals."""
    loggers = [logging.getLogger(name) for name in ("torch", "torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
