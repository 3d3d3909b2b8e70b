"""The cost of guidance and scheduler update inside the graph: one `denoise` call against its UNet alone.

    python -m benchmarks.speed.denoise_cost BUNDLE [--batch 1] [--groups 2] [--height H] [--width W] [--repetitions 9]

The UNet is cut out of the bundle's `denoise.onnx`: from the model input that is computed from `state`, to the
prediction to which guidance is applied. Both sessions run on ONNX Runtime's CPU provider with the same options, weights
(read from the bundle) and inputs. After a check that both compute the same prediction, they take turns. The ratio is
the median over the turns; the target is at most 1.03. The last line is JSON.
"""

import argparse
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray

from benchmarks.common.harness import (
    Target,
    finish,
    interleaved,
    median_ratio,
    show_environment,
    show_table,
    unet_parameters,
)
from latentrt.runtime import Bundle

TARGET = 1.03
Arrays = dict[str, NDArray[Any]]


def bare_unet(path: Path) -> tuple[bytes, str]:
    """The UNet inside a `denoise` graph, as a model whose weights stay in their file, and the name of its input."""
    model = ir.load(path)
    graph = model.graph
    inputs = {value.name: value for value in graph.inputs}
    sample, prediction = model_input(inputs["state"]), guided_prediction(inputs["guidance"])
    features = [name for name in inputs if name and (name == "time_features" or name.startswith(("key_", "value_")))]
    names = [str(sample.name), *features]
    bare = ir.Model(ir.convenience.extract(graph, names, [str(prediction.name)]), ir_version=model.ir_version)
    return ir.to_proto(bare).SerializeToString(), str(sample.name)


def model_input(state: ir.Value) -> ir.Value:
    """The UNet's input: row 0 of the state, once per group, in the UNet's type."""
    value = state
    for op_type in ("Gather", "Unsqueeze", "Expand", "Reshape"):
        value = consumer(value, op_type).outputs[0]
    users = [node for node, _ in value.uses()]
    return users[0].outputs[0] if [node.op_type for node in users] == ["Cast"] else value


def guided_prediction(guidance: ir.Value) -> ir.Value:
    """The UNet's output, before it is reshaped to (B, G, …) and multiplied by the guidance."""
    weights = consumer(guidance, "Unsqueeze").outputs[0]
    (predictions,) = (value for value in consumer(weights, "Mul").inputs if value is not weights)
    reshape = predictions.producer() if predictions is not None else None
    if reshape is None or reshape.op_type != "Reshape" or reshape.inputs[0] is None:
        raise SystemExit(
            "expected a Reshape of the predictions in denoise.onnx: export the bundle with this version of latentrt"
        )
    return reshape.inputs[0]


def consumer(value: ir.Value, op_type: str) -> ir.Node:
    """The only node of a type that uses `value`."""
    nodes = [node for node in dict.fromkeys(node for node, _ in value.uses()) if node.op_type == op_type]
    if len(nodes) != 1:
        raise SystemExit(f"expected one {op_type} after {value.name!r} in denoise.onnx, found {len(nodes)}")
    return nodes[0]


def session_of(model: bytes, folder: Path) -> onnxruntime.InferenceSession:
    """A session that reads its weights from files in `folder`."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    # Otherwise the spinning threads of one session slow down the other.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def make_inputs(bundle: Bundle, batch: int, groups: int, height: int, width: int) -> Arrays:
    """Random inputs of one `denoise` call; text and timestep go through the bundle's `context` and `time`."""
    random = np.random.default_rng(0)
    model = bundle.manifest.model
    latent = (model.latent_channels, height // model.vae_scale_factor, width // model.vae_scale_factor)
    registers, facts = model.registers, model.text_encoders[0]

    def run(graph: str, inputs: Arrays) -> Arrays:
        session = session_of(bundle.file(bundle.graph(graph).file).read_bytes(), bundle.path)
        return dict(zip([o.name for o in session.get_outputs()], session.run(None, inputs), strict=True))

    text = random.standard_normal((batch * groups, facts.max_length, facts.hidden_size), np.float32)
    return {
        "state": random.standard_normal((batch, registers, *latent), np.float32),
        "coefficients": random.standard_normal((batch, registers, registers + 2), np.float32),
        "guidance": np.tile(np.array([-6.5, 7.5] if groups == 2 else [1] * groups, np.float32), (batch, 1)),
        "guidance_rescale": np.zeros(batch, np.float32),
        "noise": random.standard_normal((batch, *latent), np.float32),
        **run("time", {"timesteps": np.full(batch * groups, 500, np.float32)}),
        **run("context", {"hidden_states": text}),
    }


def largest_difference(
    denoise: onnxruntime.InferenceSession, unet: onnxruntime.InferenceSession, inputs: Arrays, bare: Arrays
) -> float:
    """The largest difference between the predictions of the UNet and of `denoise`, relative to the largest value.

    With guidance 1 for one group, and coefficients that copy the prediction, row 0 of the next state is exactly that
    group's prediction.
    """
    batch, groups = inputs["guidance"].shape
    (prediction,) = unet.run(None, bare)
    prediction = prediction.reshape(batch, groups, *prediction.shape[1:])
    coefficients = np.zeros_like(inputs["coefficients"])
    coefficients[:, 0, -2] = 1
    worst = 0.0
    for group in range(groups):
        guidance = np.zeros_like(inputs["guidance"])
        guidance[:, group] = 1
        (state,) = denoise.run(None, {**inputs, "guidance": guidance, "coefficients": coefficients})
        worst = max(worst, float(np.abs(state[:, 0] - prediction[:, group]).max()))
    return worst / float(np.abs(prediction).max())


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Measure a denoise call against its UNet alone.")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--batch", type=int, default=1, help="images; default: 1")
    parser.add_argument("--groups", type=int, default=2, help="2 with guidance (default), 1 without")
    parser.add_argument("--height", type=int, help="pixels; default: the bundle's")
    parser.add_argument("--width", type=int, help="pixels; default: the bundle's")
    parser.add_argument("--repetitions", type=int, default=9, help="default: 9")
    arguments = parser.parse_args()
    bundle = Bundle.open(arguments.bundle)
    height = arguments.height or bundle.manifest.defaults.height
    width = arguments.width or bundle.manifest.defaults.width
    card = show_environment()
    parameters = unet_parameters(bundle)
    print(f"{arguments.bundle.name}: UNet of {parameters / 1e6:,.1f} M parameters, {width}x{height} pixels")
    print(f"target: denoise at most {TARGET:g} times the UNet alone", flush=True)

    path = bundle.file(bundle.graph("denoise").file)
    inputs = make_inputs(bundle, arguments.batch, arguments.groups, height, width)
    model, sample = bare_unet(path)
    unet, denoise = session_of(model, bundle.path), session_of(path.read_bytes(), bundle.path)
    features = {name: value for name, value in inputs.items() if name.startswith(("time_", "key_", "value_"))}
    dtype = {"tensor(float)": np.float32, "tensor(float16)": np.float16}[unet.get_inputs()[0].type]
    bare = {sample: np.repeat(inputs["state"][:, 0], arguments.groups, 0).astype(dtype), **features}
    difference = largest_difference(denoise, unet, inputs, bare)
    print(f"predictions differ by {difference:.1e} of the largest value", flush=True)
    if not difference <= 1e-2:
        raise SystemExit("the UNet that was cut out computes another prediction than denoise: nothing was timed")

    cases = {"UNet alone": lambda: unet.run(None, bare), "denoise": lambda: denoise.run(None, inputs)}
    seconds = interleaved(cases, arguments.repetitions)
    ratio = median_ratio(seconds["denoise"], seconds["UNet alone"])
    medians = {name: 1000 * statistics.median(values) for name, values in seconds.items()}
    spread = {name: 1000 * (max(values) - min(values)) for name, values in seconds.items()}
    show_table(("", "ms", "spread"), [(name, f"{medians[name]:,.2f}", f"{spread[name]:,.2f}") for name in cases])
    results = {
        "bundle": arguments.bundle.name,
        "unet_parameters": parameters,
        "batch": arguments.batch,
        "groups": arguments.groups,
        "height": height,
        "width": width,
        "difference": difference,
        "milliseconds": medians,
        "ratio": ratio,
        "seconds": seconds,
    }
    finish("denoise_cost", card, results, [Target("denoise over UNet alone", ratio, TARGET, "times")])


if __name__ == "__main__":
    main()
