"""Add guidance and scheduler update to the denoiser, and make the graph `blend`.

The result `denoise` computes one step of the denoising loop: state in, next state out. Knows the tensor contract of
`engines/README.md`; knows nothing of schedulers, whose coefficients are an input.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

from latentrt.runtime.errors import ExportError
from latentrt.runtime.scheduler import REGISTERS

F32 = ir.DataType.FLOAT


class Ops(Tape):
    """A tape with shorthands for the operators used here."""

    def const(self, values: list[int] | list[float] | float, dtype: type = np.int64) -> ir.Value:
        name = f"const_{len(self.initializers):02d}_{'_'.join(str(v) for v in np.ravel(values)).replace('-', 'm')}"
        return self.initializer(ir.tensor(np.array(values, dtype), name=name), name)

    def unsqueeze(self, value: ir.Value, *axes: int) -> ir.Value:
        return self.op("Unsqueeze", [value, self.const(list(axes))])

    def mean(self, value: ir.Value, *axes: int) -> ir.Value:
        return self.op("ReduceMean", [value, self.const(list(axes))], {"keepdims": 1})

    def weighted_sum(self, values: ir.Value, weights: ir.Value, axis: int, *, keepdims: int) -> ir.Value:
        """Mul and ReduceSum instead of MatMul, which TensorRT may round to TF32."""
        product = self.op("Mul", [values, weights])
        return self.op("ReduceSum", [product, self.const([axis])], {"keepdims": keepdims})

    def dims(self, value: ir.Value, start: int, end: int | None = None) -> ir.Value:
        """Dimensions [start, end) of a tensor, as a 1-D int64 tensor."""
        return self.op("Shape", [value], {"start": start} if end is None else {"start": start, "end": end})


def tensor(name: str, dtype: ir.DataType, shape: Sequence[int | str]) -> ir.Value:
    """A graph input."""
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))


class _StepInputs(NamedTuple):
    """The inputs of `denoise` that the UNet does not have, in graph order."""

    state: ir.Value
    coefficients: ir.Value
    guidance: ir.Value
    guidance_rescale: ir.Value
    noise: ir.Value


def fuse_denoise(loop: ir.Model, *, channels: int) -> ir.Model:
    """Add guidance and scheduler update to the UNet, in place.

    Inputs: `state` (B, R, C, h, w), `coefficients` (B, R, R+2), `guidance` (B, G), `guidance_rescale` (B,),
    `noise` (B, C, h, w), for inpainting UNets `extra` (B, 5, h, w), all float32, then those from the cut:
    `time_features` (B*G, F), `key_*`, `value_*` (B*G, S, …).
    Output: `next_state` (B, R, C, h, w) float32.

    With x = state[:, 0], m_g = UNet([x, extra]) for each guidance group, m = sum_g guidance_g m_g (where
    guidance_rescale > 0, rescaled towards the standard deviation of the last group; Lin et al. 2023, eq. 15-16):
    next_state_r = sum_k coefficients[r, k] [state_0 … state_{R-1}, m, noise]_k.

    Raises `ExportError` unless the UNet has an input `sample` and one output.
    """
    graph = loop.graph
    sample = next((v for v in graph.inputs if v.name == "sample"), None)
    if sample is None or len(graph.outputs) != 1:
        raise ExportError("the denoiser must have an input 'sample' and one output")
    step = _step_inputs(channels)

    before = Ops()
    x = before.op("Gather", [step.state, before.const(0)], {"axis": 1})
    groups = before.dims(step.guidance, 0)
    grouped = before.op("Concat", [groups, before.dims(x, 1)], {"axis": 0})
    ir.convenience.replace_all_uses_with(sample, repeated(before, x, groups, like=sample))
    extra = _repeat_extra(before, graph, groups)

    after = Ops()
    next_state = _next_state(after, graph.outputs[0], step, grouped)

    rest = [v for v in graph.inputs if v is not sample]
    graph.inputs[:] = [*step, *extra, *rest]
    graph.insert_before(graph[0], before.nodes)
    graph.extend(after.nodes)
    for value in (*before.initializers, *_renamed(after.initializers, "after")):
        graph.register_initializer(value)
    graph.outputs[:] = [next_state]
    for value in rest:
        assert value.shape is not None
        value.shape = ir.Shape(["B*G", *list(value.shape)[1:]])
    graph.sort()
    return loop


def _step_inputs(channels: int) -> _StepInputs:
    latent: list[int | str] = [channels, "h", "w"]
    return _StepInputs(
        state=tensor("state", F32, ["B", REGISTERS, *latent]),
        coefficients=tensor("coefficients", F32, ["B", REGISTERS, REGISTERS + 2]),
        guidance=tensor("guidance", F32, ["B", "G"]),
        guidance_rescale=tensor("guidance_rescale", F32, ["B"]),
        noise=tensor("noise", F32, ["B", *latent]),
    )


def _repeat_extra(ops: Ops, graph: ir.Graph, groups: ir.Value) -> list[ir.Value]:
    """Replace the UNet's input `extra` by one with a row per image; returns the new input, if there is one."""
    replaced = []
    for extra in [v for v in graph.inputs if v.name == "extra"]:
        assert extra.shape is not None
        per_image = tensor("extra", F32, ["B", extra.shape[1], "h", "w"])  # type: ignore[list-item]
        ir.convenience.replace_all_uses_with(extra, repeated(ops, per_image, groups, like=extra))
        graph.inputs.remove(extra)
        replaced.append(per_image)
    return replaced


def _next_state(ops: Ops, output: ir.Value, step: _StepInputs, grouped: ir.Value) -> ir.Value:
    """Guidance, guidance rescale and scheduler update on the UNet's output; `grouped` is the shape (B, G, C, h, w)."""
    if output.dtype != F32:
        output = ops.op("Cast", [output], {"to": int(F32)})
    predictions = ops.op("Reshape", [output, grouped])
    weights = ops.unsqueeze(step.guidance, 2, 3, 4)
    guided = ops.weighted_sum(predictions, weights, 1, keepdims=1)
    m = _rescaled(ops, guided, predictions, step.guidance_rescale)
    everything = ops.op("Concat", [step.state, m, ops.unsqueeze(step.noise, 1)], {"axis": 1})
    rows = ops.unsqueeze(step.coefficients, 3, 4, 5)
    next_state = ops.weighted_sum(ops.unsqueeze(everything, 1), rows, 2, keepdims=0)
    next_state.name, next_state.dtype, next_state.shape = "next_state", F32, step.state.shape
    return next_state


def repeated(ops: Ops, value: ir.Value, groups: ir.Value, *, like: ir.Value) -> ir.Value:
    """(B, …) -> (B*G, …), each row repeated for each guidance group, in the dtype of `like`."""
    image = ops.dims(value, 1)
    spread = ops.op("Expand", [ops.unsqueeze(value, 1), ops.op("Concat", [groups, image], {"axis": 0})])
    flat = ops.op("Reshape", [spread, ops.op("Concat", [ops.const([-1]), image], {"axis": 0})])
    if like.dtype != (value.dtype or F32):
        flat = ops.op("Cast", [flat], {"to": int(like.dtype or F32)})
    flat.type, flat.shape = like.type, like.shape
    return flat


def _rescaled(ops: Ops, guided: ir.Value, predictions: ir.Value, rescale: ir.Value) -> ir.Value:
    """guided * (1 + r (std_last / std_guided - 1)); exactly `guided` where r = 0, even if a deviation is 0."""
    last = ops.op("Gather", [predictions, ops.const([-1])], {"axis": 1})
    ratio = ops.op("Sqrt", [ops.op("Div", [_variance(ops, last), _variance(ops, guided)])])
    one, zero = ops.const(1.0, np.float32), ops.const(0.0, np.float32)
    r = ops.unsqueeze(rescale, 1, 2, 3, 4)
    factor = ops.op("Add", [one, ops.op("Mul", [r, ops.op("Sub", [ratio, one])])])
    factor = ops.op("Where", [ops.op("Greater", [r, zero]), factor, one])
    return ops.op("Mul", [guided, factor])


def _variance(ops: Ops, value: ir.Value) -> ir.Value:
    centred = ops.op("Sub", [value, ops.mean(value, 2, 3, 4)])
    return ops.mean(ops.op("Mul", [centred, centred]), 2, 3, 4)


def _renamed(values: Sequence[ir.Value], prefix: str) -> list[ir.Value]:
    for value in values:
        value.name = f"{prefix}_{value.name}"
    return list(values)


def blend_model(*, channels: int, opset: int) -> ir.Model:
    """The graph `blend`: restores known latents in row 0 of the state where the mask is 0.

    Inputs, all float32: `state` (B, R, C, h, w), `mask` (B, 1, h, w), `clean` and `noise` (B, C, h, w), `blend` (B, 2).
    Output: `next_state` (B, R, C, h, w), whose row 0 is
    mask * state_0 + (1 - mask) * (blend_0 * clean + blend_1 * noise); the other rows are those of `state`.
    """
    latent: list[int | str] = [channels, "h", "w"]
    state = tensor("state", F32, ["B", REGISTERS, *latent])
    mask = tensor("mask", F32, ["B", 1, "h", "w"])
    clean, noise = tensor("clean", F32, ["B", *latent]), tensor("noise", F32, ["B", *latent])
    blend = tensor("blend", F32, ["B", 2])
    ops = Ops()
    sizes = ops.const([1, REGISTERS - 1])
    current, history = ops.op_multi_out("Split", [state, sizes], {"axis": 1}, num_outputs=2)
    pair = ops.op("Concat", [ops.unsqueeze(clean, 1), ops.unsqueeze(noise, 1)], {"axis": 1})
    known = ops.weighted_sum(pair, ops.unsqueeze(blend, 2, 3, 4), 1, keepdims=1)
    inside = ops.unsqueeze(mask, 1)
    outside = ops.op("Sub", [ops.const(1.0, np.float32), inside])
    row = ops.op("Add", [ops.op("Mul", [inside, current]), ops.op("Mul", [outside, known])])
    next_state = ops.op("Concat", [row, history], {"axis": 1})
    next_state.name, next_state.dtype, next_state.shape = "next_state", F32, state.shape
    graph = ir.Graph(
        [state, mask, clean, noise, blend],
        [next_state],
        nodes=ops.nodes,
        initializers=ops.initializers,
        opset_imports={"": opset},
        name="blend",
    )
    return ir.Model(graph, ir_version=10, producer_name="latentrt")
