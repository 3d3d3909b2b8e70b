"""Graphs that also return the ranges of their activations, and the ranges that were collected."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.tape import Tape
from safetensors.numpy import save

from latentrt.runtime.errors import InputError
from latentrt.runtime.weights.tensor_file import read_safetensors

from .layers import Layer
from .smooth import maker

RANGES, CHANNELS = "ranges", "channel_maxima"
_FORMAT = "latentrt.calibration/1"
Outputs = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Watched:
    """What the outputs of an observed graph hold.

    Attributes:
        activations: names of the rows of `ranges` (T, 2), least and largest value.
        channels: activation -> its number of channels; `channel_maxima` (sum,) holds their largest absolute values,
            one activation after the other.
    """

    activations: tuple[str, ...]
    channels: dict[str, int]


def observe(model: ir.Model, layers: Iterable[Layer]) -> Watched:
    """Add the outputs `ranges` and `channel_maxima` to a graph, in place.

    Watched are the activations of all layers, the outputs of convolutions, and the channels of activations that can be
    smoothed.
    """
    tape, rows, maxima = Tape(), dict[str, ir.Value](), dict[str, tuple[ir.Value, int]]()
    for layer in layers:
        activation = layer.node.inputs[0]
        assert activation is not None
        ends = [activation, *(layer.node.outputs if layer.node.op_type == "Conv" else ())]
        for value in ends:
            if value.name not in rows:
                rows[str(value.name)] = _range(tape, value)
        if activation.name not in maxima and maker(layer) is not None:
            maxima[str(activation.name)] = _channel_maxima(tape, activation), layer.shape[0]
    outputs = [_output(tape, RANGES, [*rows.values()], [len(rows), 2])]
    if maxima:
        width = sum(size for _, size in maxima.values())
        outputs.append(_output(tape, CHANNELS, [value for value, _ in maxima.values()], [width]))
    model.graph.extend(tape.nodes)
    for value in tape.initializers:
        model.graph.register_initializer(value)
    model.graph.outputs.extend(outputs)
    return Watched(tuple(rows), {name: size for name, (_, size) in maxima.items()})


def _range(tape: Tape, value: ir.Value) -> ir.Value:
    """(1, 2) float32."""
    full = tape.op("Cast", [value], {"to": int(ir.DataType.FLOAT)})
    ends = [tape.op(name, [full], {"keepdims": 0}) for name in ("ReduceMin", "ReduceMax")]
    one = _constant(tape, [1, 1])
    return tape.op("Concat", [tape.op("Reshape", [end, one]) for end in ends], {"axis": 1})


def _channel_maxima(tape: Tape, value: ir.Value) -> ir.Value:
    """(C,) float32, of an activation (n, pixels, C)."""
    full = tape.op("Abs", [tape.op("Cast", [value], {"to": int(ir.DataType.FLOAT)})])
    return tape.op("ReduceMax", [full, _constant(tape, [0, 1])], {"keepdims": 0})


def _constant(tape: Tape, values: list[int]) -> ir.Value:
    name = f"observer_{len(tape.initializers)}"
    return tape.initializer(ir.tensor(np.array(values, np.int64), name=name), name)


def _output(tape: Tape, name: str, parts: list[ir.Value], shape: list[int]) -> ir.Value:
    value = tape.op("Concat", parts, {"axis": 0})
    value.name, value.type, value.shape = name, ir.TensorType(ir.DataType.FLOAT), ir.Shape(shape)
    return value


@dataclass(slots=True, eq=False)
class Calibration:
    """What observed graphs returned in all runs.

    Attributes:
        source: hash of the bundle that was observed.
        prompts: all prompts, those of the gate among them.
        watched: graph -> what its rows are.
        ranges: graph -> (T, 2), least and largest values.
        channels: graph -> (sum of channels,), largest absolute values.
    """

    source: str
    prompts: tuple[str, ...]
    watched: dict[str, Watched]
    ranges: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    channels: dict[str, NDArray[np.float32]] = field(default_factory=dict)

    def note(self, graph: str, outputs: Outputs) -> None:
        """Add a run of a graph."""
        if graph not in self.watched:
            return
        new, signs = outputs[RANGES].copy(), np.array([-1, 1], np.float32)
        self.ranges[graph] = signs * np.maximum(signs * new, signs * self.ranges.get(graph, new))
        if CHANNELS in outputs:
            maxima = outputs[CHANNELS].copy()
            self.channels[graph] = np.maximum(maxima, self.channels.get(graph, maxima))

    def of(self, graph: str) -> dict[str, tuple[float, float]]:
        """Activation -> least and largest value. Raises `InputError` if one is not finite."""
        if not np.isfinite(self.ranges[graph]).all():
            raise InputError(f"{graph} returned NaN or infinity while it was calibrated: its precision overflows")
        names = self.watched[graph].activations
        return {name: (float(low), float(high)) for name, (low, high) in zip(names, self.ranges[graph], strict=True)}

    def channel_maxima(self, graph: str) -> dict[str, NDArray[np.float32]]:
        """Activation -> (C,), the largest absolute value of each channel."""
        watched = self.watched[graph].channels
        if not watched:
            return {}
        ends = np.cumsum([*watched.values()])[:-1]
        return dict(zip(watched, np.split(self.channels[graph], ends), strict=True))

    def save(self, path: Path) -> None:
        """Write a safetensors file that `read_calibration` reads."""
        tensors = {f"{graph}.{RANGES}": array for graph, array in self.ranges.items()}
        tensors |= {f"{graph}.{CHANNELS}": array for graph, array in self.channels.items()}
        rows = {graph: [watched.activations, watched.channels] for graph, watched in self.watched.items()}
        facts = {"source": self.source, "prompts": json.dumps(self.prompts), "watched": json.dumps(rows)}
        path.write_bytes(save(tensors, {"format": _FORMAT, **facts}))


def read_calibration(path: Path) -> Calibration:
    """Read what `Calibration.save` wrote. Raises `InputError` for other files."""
    tensors, metadata = read_safetensors(path)
    try:
        if metadata["format"] != _FORMAT:
            raise ValueError(metadata["format"])
        rows = json.loads(metadata["watched"])
        watched = {graph: Watched(tuple(names), dict(channels)) for graph, (names, channels) in rows.items()}
        found = Calibration(metadata["source"], tuple(json.loads(metadata["prompts"])), watched)
        for graph, facts in watched.items():
            found.ranges[graph] = tensors[f"{graph}.{RANGES}"].reshape(len(facts.activations), 2)
            if facts.channels:
                found.channels[graph] = tensors[f"{graph}.{CHANNELS}"].reshape(sum(facts.channels.values()))
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{path} holds no calibration ({error!r}): give a text file with prompts") from error
    return found
