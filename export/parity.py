"""Compare exported graphs with PyTorch, at two shapes each, and generate the bundle's golden outputs.

Runs as a child process of the export, `parity_child`, with a JSON request on stdin and its `Findings` as the last line
of stdout. The reference is the checkpoint's module in float32, with its weights rounded to the bundle's precision. The
last line of stderr says what failed; exit status 3 means that a graph is wrong, and the line names graph and error.
"""

import gc
import json
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from latentrt.export.checkpoint.checkpoint import Checkpoint, quiet_libraries
from latentrt.export.checkpoint.families import UNetInput, extra_channels, time_inputs
from latentrt.export.checkpoint.source import Source
from latentrt.export.graphs.onnx_export import TensorInput, TupleInput
from latentrt.export.graphs.onnx_files import float32_twin
from latentrt.export.graphs.ports import port_inputs
from latentrt.export.graphs.precision import dtype_of
from latentrt.export.graphs.text_encoder import TextEncoderGraph
from latentrt.export.graphs.unet import UNetGraph
from latentrt.export.graphs.vae import VAEDecoderGraph, VAEEncoderGraph
from latentrt.runtime.bundle import Defaults, Model, TextEncoder
from latentrt.runtime.bundle.manifest import PORTS
from latentrt.runtime.bundle.strict_json import decode, encode
from latentrt.runtime.errors import LatentRTError, ParityError
from latentrt.runtime.scheduler import REGISTERS

from .goldens import GOLDEN_LIMITS, LARGE, Array, Findings, GoldenMaker, as_tuple
from .latent_rgb import fit_latent_rgb

# Maximum error relative to the largest value; for bytes, in levels of 255.
TOLERANCE = {"fp32": 2e-4, "fp16": 3e-2, "bf16": 5e-2}
BYTE_LEVELS = {"fp32": 1, "fp16": 8, "bf16": 32}
# Number of guidance groups -> their weights.
GUIDANCE = {1: (1.0,), 2: (-3.0, 4.0)}
_FLOATS = {"tensor(float16)": np.float16, "tensor(float)": np.float32}
_VAE_SIZES = ((2, 8, 10), (1, 9, 6))  # images, height and width of latents
_OF_DENOISE = ("state", "coefficients", "guidance", "guidance_rescale", "noise")  # inputs that the UNet does not have


class GraphCheck:
    """Runs a bundle's graphs with ONNX Runtime and compares their outputs; keeps no session between graphs."""

    def __init__(self, folder: Path, precision: str) -> None:
        self.folder, self.precision = folder, precision

    def run(self, graph: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run a graph once; a bf16 graph as a float32 copy, as ONNX Runtime's CPU kernels lack bfloat16."""
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        path = self.folder / f"{graph}.onnx"
        with tempfile.TemporaryDirectory(dir=self.folder) as temporary:
            if self.precision == "bf16":
                path = Path(temporary) / path.name
                float32_twin(self.folder / f"{graph}.onnx", path)
            session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            names = [o.name for o in session.get_outputs()]
            dtypes = {i.name: _FLOATS.get(i.type) for i in session.get_inputs()}
            given = {name: array.astype(dtypes[name] or array.dtype, copy=False) for name, array in inputs.items()}
            return dict(zip(names, session.run(names, given), strict=True))

    def compare(self, graph: str, name: str, got: Array, expected: Array) -> None:
        """Raise `ParityError` if `got` differs from `expected` by more than the tolerance."""
        if got.shape != expected.shape:
            raise ParityError(f"{graph}: {name} has shape {got.shape}, expected {expected.shape}")
        difference = np.abs(got.astype(np.float64) - expected.astype(np.float64)).max()
        if expected.dtype == np.uint8:
            error, limit, unit = difference, float(BYTE_LEVELS[self.precision]), "levels of 255"
        else:
            error, limit, unit = difference / np.abs(expected).max(), TOLERANCE[self.precision], "of the largest value"
        if not error <= limit:
            raise ParityError(
                f"{graph}: {name} {got.shape} differs from PyTorch by {error:.3g} {unit}; "
                f"the tolerance is {limit:.3g} at {self.precision}"
            )


def check_and_make_golden(request: Mapping[str, Any]) -> Findings:
    """Check every graph of the folder in `request`, and write the golden file there.

    Raises `ParityError` for the first graph that differs from PyTorch.
    """
    checkpoint = Checkpoint.open(decode(Source, request["source"], "source"))
    model: Model = decode(Model, request["model"], "model")
    check = GraphCheck(Path(request["folder"]), request["precision"])
    dtype = dtype_of(request["precision"])
    golden = GoldenMaker(checkpoint, model, decode(Defaults, request["defaults"], "defaults"), request["prompt"])
    with torch.inference_mode():
        for row, facts in zip(checkpoint.family.text_encoders, model.text_encoders, strict=True):
            text = TextEncoderGraph(checkpoint.load(row.part, dtype).float(), row)
            _check_text_encoder(check, text, facts)
            golden.encode(text, facts, check.folder)
            del text
            gc.collect()
        unet = checkpoint.load("unet", dtype).float()
        size = sum(p.numel() for p in unet.parameters())
        of_time = time_inputs(checkpoint.configs["unet"], checkpoint.family.time_ids)
        references = _unet_references(unet, checkpoint.configs["unet"], of_time, request["ports"])
        golden.denoise(unet, small=size > LARGE)
        del unet
        gc.collect()
        for inputs, expected in references:
            check.compare("denoise", "next_state", _run_denoise(check, inputs), expected)
        del references
        _check_blend(check, model)
        vae: Any = checkpoint.load("vae", dtype_of(request["vae_precision"])).float()
        _check_vae(GraphCheck(check.folder, request["vae_precision"]), vae, model)
        golden.decode(vae)
        latent_rgb = fit_latent_rgb(vae, factor=model.vae_scale_factor, scaling=model.scaling_factor)
        if "preview_vae" in checkpoint.configs:
            preview_vae = checkpoint.load("preview_vae", dtype).float()
            _check_decoder(check, "preview_decoder", preview_vae, model)
            golden.decode(preview_vae, "preview")
    return Findings(golden.write(check.folder, GOLDEN_LIMITS[request["precision"]]), latent_rgb)


def _check_text_encoder(check: GraphCheck, module: torch.nn.Module, facts: TextEncoder) -> None:
    random = np.random.default_rng(1)
    for n in (2, 3):
        ids = random.integers(0, facts.bos, (n, facts.max_length))
        ids[:, 0] = facts.bos
        for row, end in zip(ids, random.integers(1, facts.max_length, n), strict=True):
            row[end], row[end + 1 :] = facts.eos, facts.pad
        expected = as_tuple(module(torch.from_numpy(ids)))
        got = check.run(facts.graph, {"input_ids": ids})
        for name, value in zip(("hidden_states", "pooled"), expected, strict=False):
            check.compare(facts.graph, name, got[name], value.numpy())


def _unet_references(
    unet: Any, config: Mapping[str, Any], of_time: Sequence[UNetInput], ports: Sequence[str]
) -> list[tuple[dict[str, Array], Array]]:
    """Random inputs of `time`, `context` and `denoise` at two shapes, each with the next state from PyTorch."""
    stride = 2 ** (len(config["down_block_types"]) - 1)
    channels, width = config.get("out_channels", 4), config["cross_attention_dim"]
    random = np.random.default_rng(2)

    def normal(*shape: int) -> Array:
        return random.standard_normal(shape, np.float32)

    results = []
    for batch, groups, height, columns, tokens in ((2, 2, 2 * stride, 3 * stride, 77), (3, 1, stride + 1, stride, 154)):
        guidance = np.tile(np.array(GUIDANCE[groups], np.float32), (batch, 1))
        inputs: dict[str, Array] = {
            "state": normal(batch, REGISTERS, channels, height, columns),
            "coefficients": normal(batch, REGISTERS, REGISTERS + 2),
            "guidance": guidance,
            "guidance_rescale": np.linspace(0, 0.7, batch, dtype=np.float32),
            "noise": normal(batch, channels, height, columns),
            "timesteps": np.repeat(random.uniform(0, 999, batch), groups).astype(np.float32),
            "hidden_states": normal(batch * groups, tokens, width),
        }
        inputs |= {more.name: normal(batch * groups, *more.shape) for more in of_time}
        if "time_ids" in inputs:
            inputs["time_ids"] = random.integers(0, 1024, inputs["time_ids"].shape).astype(np.float32)
        if extra := extra_channels(config):
            inputs["extra"] = normal(batch, extra, height, columns)
        own: dict[str, Any] = {name: torch.from_numpy(inputs[name]) for name in inputs if name not in _OF_DENOISE}
        own["sample"] = torch.from_numpy(np.repeat(inputs["state"][:, 0], groups, 0))
        if extra:
            own["extra"] = torch.from_numpy(np.repeat(inputs["extra"], groups, 0))
        module = UNetGraph(unet)
        examples = [TensorInput(name, own[name], {}) for name in ("sample", *(own.keys() - {"sample"}))]
        for one in port_inputs(unet, ports, module, examples)[0]:
            added = {part.name: 0.3 * normal(*part.example.shape) for part in one.parts}
            inputs |= added
            tensors = tuple(map(torch.from_numpy, added.values()))
            own[one.name] = tensors if isinstance(one, TupleInput) else tensors[0]
        predictions = module(**own).numpy().reshape(batch, groups, channels, height, columns)
        results.append((inputs, next_state(inputs, predictions)))
    return results


def next_state(inputs: Mapping[str, Array], predictions: Array) -> Array:
    """The part of `denoise` after the UNet, in float64 numpy: guidance, guidance rescale, scheduler update.

    Args:
        inputs: inputs of `denoise` by name.
        predictions: (B, G, C, h, w), the UNet's outputs.

    Returns (B, R, C, h, w).
    """
    guided = np.einsum("bg,bgchw->bchw", inputs["guidance"].astype(np.float64), predictions)
    ratio = predictions[:, -1].std((1, 2, 3)) / guided.std((1, 2, 3))
    guided *= (1 + inputs["guidance_rescale"] * (ratio - 1))[:, None, None, None]
    columns = np.concatenate([inputs["state"], guided[:, None], inputs["noise"][:, None]], 1)
    return np.asarray(np.einsum("brk,bkchw->brchw", inputs["coefficients"], columns))


def _run_denoise(check: GraphCheck, inputs: dict[str, Array]) -> Array:
    ports = tuple(PORTS.values())
    own = {name: a for name, a in inputs.items() if name in (*_OF_DENOISE, "extra") or name.startswith(ports)}
    context = check.run("context", {"hidden_states": inputs["hidden_states"]})
    of_time = {name: array for name, array in inputs.items() if name not in own and name != "hidden_states"}
    return check.run("denoise", {**own, **check.run("time", of_time), **context})["next_state"]


def _check_blend(check: GraphCheck, model: Model) -> None:
    random = np.random.default_rng(3)
    for batch, height, width in ((2, 6, 10), (3, 5, 4)):
        latent = (batch, model.latent_channels, height, width)
        state = random.standard_normal((batch, REGISTERS, *latent[1:]), np.float32)
        clean, noise = random.standard_normal((2, *latent), np.float32)
        mask = random.uniform(0, 1, (batch, 1, height, width)).astype(np.float32)
        blend = random.standard_normal((batch, 2), np.float32)
        expected = state.copy()
        known = clean * blend[:, 0, None, None, None] + noise * blend[:, 1, None, None, None]
        expected[:, 0] = mask * state[:, 0] + (1 - mask) * known
        inputs = {"state": state, "mask": mask, "clean": clean, "noise": noise, "blend": blend}
        check.compare("blend", "next_state", check.run("blend", inputs)["next_state"], expected)


def _check_vae(check: GraphCheck, vae: Any, model: Model) -> None:
    _check_decoder(check, "vae_decoder", vae, model)
    random = np.random.default_rng(4)
    factor = model.vae_scale_factor
    for batch, height, width in _VAE_SIZES:
        pixels = random.uniform(-1, 1, (batch, height * factor, width * factor, 3)).astype(np.float32)
        moments = check.run("vae_encoder", {"images": pixels})
        expected = as_tuple(VAEEncoderGraph(vae)(torch.from_numpy(pixels)))
        for name, value in zip(moments, expected, strict=True):
            check.compare("vae_encoder", name, moments[name], value.numpy())


def _check_decoder(check: GraphCheck, graph: str, vae: Any, model: Model) -> None:
    random = np.random.default_rng(7)
    for batch, height, width in _VAE_SIZES:
        latents = random.standard_normal((batch, model.latent_channels, height, width), np.float32)
        latents *= model.scaling_factor
        images, _ = VAEDecoderGraph(vae)(torch.from_numpy(latents))
        got = check.run(graph, {"latents": latents})
        check.compare(graph, "images", got["images"], images.numpy())
        check.compare(graph, "nonfinite + 1", got["nonfinite"] + 1, np.ones(batch, np.int32))


def main(read: Callable[[], str] = sys.stdin.read) -> int:
    """Entry point of the child process; returns the exit status."""
    quiet_libraries()
    try:
        findings = check_and_make_golden(json.loads(read()))
    except ParityError as error:
        print(error, file=sys.stderr)
        return 3
    except Exception as error:  # of any kind: the export tells it in one line
        traceback.print_exc()
        print(_in_one_line(error), file=sys.stderr)
        return 1
    print(json.dumps(encode(findings)))
    return 0


def _in_one_line(error: BaseException) -> str:
    """What went wrong: our own errors say it themselves, others with their type."""
    while isinstance(error, SystemError) and (cause := error.__cause__ or error.__context__):
        error = cause  # a SystemError only says that an extension failed
    text = " ".join(str(error).split())
    if isinstance(error, LatentRTError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
