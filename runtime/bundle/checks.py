"""What a manifest must say besides its types: ranges of numbers, names that exist, graphs as the format has them.

A bundle may come from anywhere. What is out of range is refused when it is opened, and not where it is first used.
"""

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any

from latentrt.runtime.arrays import DTYPES

from .manifest import PORTS, QUANTIZED, QUANTIZED_FOR, Graph, Manifest, TensorSpec
from .sizes import symbols_of, takes_score

_HIGH = 2**31
# Path of a number in the manifest -> its range.
_RANGES: dict[str, tuple[float, float]] = {
    "model.latent_channels": (1, 128),
    "model.vae_scale_factor": (1, 64),
    "model.vae_tile": (4, 16384),
    "model.scaling_factor": (1e-6, 1e6),
    "model.registers": (1, 64),
    "defaults.height": (1, 16384),
    "defaults.width": (1, 16384),
    "defaults.num_inference_steps": (1, 10_000),
    "defaults.guidance_scale": (0, 1000),
    "defaults.strength": (1e-6, 1),
    "defaults.inpaint_strength": (1e-6, 1),
    "golden.height": (1, 16384),
    "golden.width": (1, 16384),
    "golden.num_inference_steps": (1, 10_000),
    "golden.guidance_scale": (0, 1000),
    "golden.embedding_tolerance": (0, 0.5),
    "golden.latents_tolerance": (0, 0.5),
    "golden.psnr_floor": (10, 1000),
}
_OF_ENCODER: dict[str, tuple[float, float]] = {
    "max_length": (3, 10_000),
    "bos": (0, _HIGH),
    "eos": (0, _HIGH),
    "pad": (0, _HIGH),
    "hidden_size": (1, 65536),
    "hidden_states": (1, 1024),
}
_OF_QUANTIZATION: dict[str, tuple[float, float]] = {
    "level": (1, 3),
    "prompts": (0, _HIGH),
    **dict.fromkeys(("gate_mean", "gate_worst", "error_mean", "error_worst", "psnr"), (0, 1000)),
}
# Graph -> the inputs and outputs that it must have; `text_encoder`s come from `model.text_encoders`.
_TENSORS = {
    "context": ({"hidden_states"}, set[str]()),
    "time": ({"timesteps"}, {"time_features"}),
    "denoise": (
        {"state", "coefficients", "guidance", "guidance_rescale", "noise", "time_features"},
        {"next_state"},
    ),
    "blend": ({"state", "mask", "clean", "noise", "blend"}, {"next_state"}),
    "vae_decoder": ({"latents"}, {"images", "nonfinite"}),
    "vae_encoder": ({"images"}, {"mean", "logvar"}),
}
_SYMBOLS = "BGhwSTn"
_DIMENSION = re.compile(rf"([1-9][0-9]{{0,3}}\*)*[{_SYMBOLS}](\*[{_SYMBOLS}])*|[hw]/[1-9][0-9]?")


def faults(manifest: Manifest) -> Iterator[str]:
    """What is wrong, one sentence each."""
    yield from _numbers(manifest)
    yield from _files(manifest)
    yield from _encoders(manifest)
    yield from _graphs(manifest)
    yield from _weights(manifest)
    yield from _engines(manifest)
    yield from _quantization(manifest)


def _numbers(manifest: Manifest) -> Iterator[str]:
    for path, (least, most) in _RANGES.items():
        record, name = path.split(".")
        if (part := getattr(manifest, record)) is not None:
            yield from _outside(path, getattr(part, name), least, most)
    for i, encoder in enumerate(manifest.model.text_encoders):
        for name, (least, most) in _OF_ENCODER.items():
            yield from _outside(f"model.text_encoders[{i}].{name}", getattr(encoder, name), least, most)
    for name in ("height", "width"):
        for record in ("defaults", "golden"):
            size, factor = getattr(getattr(manifest, record), name, 0), manifest.model.vae_scale_factor
            if factor > 0 and size % factor:
                yield f"{record}.{name} is {size}: expected a multiple of {factor}"
    colours = manifest.model.latent_rgb
    if colours is not None:
        sizes = {len(row) for row in colours}
        if len(colours) != manifest.model.latent_channels + 1 or sizes != {3}:
            yield f"model.latent_rgb is not {manifest.model.latent_channels + 1} rows of 3 numbers"
        elif not all(abs(value) < 1e6 for row in colours for value in row):
            yield "model.latent_rgb holds numbers that are not finite, or too large"


def _outside(path: str, value: Any, least: float, most: float) -> Iterator[str]:
    if not least <= value <= most:
        # An integer of a JSON file may be too large for a float.
        given = f"{value:.6g}" if abs(value) < 1e300 else "out of range"
        yield f"{path} is {given}: expected {least:g} to {most:g}"


def _files(manifest: Manifest) -> Iterator[str]:
    names = {
        "scheduler": manifest.scheduler,
        **{f"graphs.{name}.file": graph.file for name, graph in manifest.graphs.items()},
        **{f"model.text_encoders[{i}].tokenizer": e.tokenizer for i, e in enumerate(manifest.model.text_encoders)},
    }
    names |= {f"plans[{i}]": name for i, name in enumerate(manifest.plans)}
    if len(set(manifest.plans)) < len(manifest.plans):
        yield "plans lists a file twice"
    if manifest.golden is not None:
        names["golden.file"] = manifest.golden.file
    for where, name in names.items():
        if name not in manifest.files:
            yield f"{where} is {name[:80]!r}, which files does not list"
    for name, file in manifest.files.items():
        parts = PurePosixPath(name)
        if parts.is_absolute() or ".." in parts.parts or "\\" in name or "\0" in name or not parts.parts:
            yield f"files lists a file outside the bundle: {name[:80]!r}"
        if file.size < 0 or (file.sha256 and not re.fullmatch("[0-9a-f]{64}", file.sha256)):
            yield f"files.{name[:80]} has no valid size and sha256"


def _graphs(manifest: Manifest) -> Iterator[str]:
    for name, (inputs, outputs) in _TENSORS.items():
        graph = manifest.graphs.get(name)
        if graph is None:
            yield f"graphs.{name} is missing"
            continue
        has = {spec.name for spec in graph.inputs}, {spec.name for spec in graph.outputs}
        if missing := [*sorted(inputs - has[0]), *sorted(outputs - has[1])]:
            yield f"graphs.{name} has no tensor {', '.join(missing)}"
        yield from _known_shapes(manifest, name, graph)
    yield from _handed_on(manifest)
    yield from _ports(manifest)
    for name, graph in manifest.graphs.items():
        if any(len({spec.name for spec in specs}) < len(specs) for specs in (graph.inputs, graph.outputs)):
            yield f"graphs.{name[:40]} has a tensor twice"
        for spec in (*graph.inputs, *graph.outputs):
            yield from _tensor(f"graphs.{name[:40]}", spec)
        yield from _input_symbols(name, graph)


def _known_shapes(manifest: Manifest, name: str, graph: Graph) -> Iterator[str]:
    """The sizes that the runtime takes for granted."""
    model = manifest.model
    factor, latents = model.vae_scale_factor, ("B", model.latent_channels, "h", "w")
    pixels = ("B", f"{factor}*h" if factor > 1 else "h", f"{factor}*w" if factor > 1 else "w", 3)
    state = ("B", model.registers, *latents[1:])
    known: dict[str, dict[str, tuple[int | str, ...]]] = {
        "denoise": {
            "state": state,
            "next_state": state,
            "coefficients": ("B", model.registers, model.registers + 2),
            "guidance": ("B", "G"),
            "guidance_rescale": ("B",),
            "noise": latents,
            "extra": ("B", model.latent_channels + 1, "h", "w"),
        },
        "blend": {
            "state": state,
            "next_state": state,
            "mask": ("B", 1, "h", "w"),
            "clean": latents,
            "noise": latents,
            "blend": ("B", 2),
        },
        "time": {"timesteps": ("n",), "time_ids": ("n", 5 if takes_score(graph) else 6)},
        "context": {"hidden_states": ("n", "S", sum(encoder.hidden_size for encoder in model.text_encoders))},
        "vae_decoder": {"latents": latents, "images": pixels, "nonfinite": ("B",)},
        "vae_encoder": {"images": pixels, "mean": latents, "logvar": latents},
    }
    dtypes = {"images": "uint8" if name == "vae_decoder" else "float32", "nonfinite": "int32"}
    for spec in (*graph.inputs, *graph.outputs):
        shape, dtype = known[name].get(spec.name), dtypes.get(spec.name, "float32")
        if shape is not None and (spec.shape, spec.dtype) != (shape, dtype):
            yield f"graphs.{name}: {spec.name} is {spec.dtype[:40]} {str(spec.shape)[:80]}: expected {dtype} {shape}"


def _handed_on(manifest: Manifest) -> Iterator[str]:
    """`denoise` reads what `context` and `time` give, and no graph has an input that nobody knows."""
    graphs = manifest.graphs
    if not {"context", "time", "denoise"} <= graphs.keys():
        return
    given = {spec.name: spec for name in ("context", "time") for spec in graphs[name].outputs}
    own = {*_TENSORS["denoise"][0], "extra"} - {"time_features"}
    ports = tuple(PORTS[name] for name in manifest.recipe.ports if name in PORTS)
    for spec in graphs["denoise"].inputs:
        if spec.name in own or spec.name.startswith(ports):
            continue
        source = given.get(spec.name)
        if source is None or (source.dtype, source.shape[1:]) != (spec.dtype, spec.shape[1:]):
            yield f"graphs.denoise: the input {spec.name[:40]} is no output of context or time"
        elif spec.shape[:1] != ("B*G",):
            yield f"graphs.denoise: the input {spec.name[:40]} has {spec.shape[0]!s:.40} rows: expected B*G"
    if missing := sorted(given.keys() - {spec.name for spec in graphs["denoise"].inputs}):
        yield f"graphs.denoise has no input {missing[0][:40]}"
    if taken := sorted(given.keys() & own):
        yield f"graphs.denoise: another graph gives its input {taken[0]}"
    pooled = any(encoder.pooled for encoder in manifest.model.text_encoders)
    optional = {"time_ids", "guidance_embedding", *({"pooled"} if pooled else ())}
    if unknown := sorted({spec.name for spec in graphs["time"].inputs} - {"timesteps", *optional}):
        yield f"graphs.time has the input {unknown[0][:40]!r}, which is not in the format"
    for spec in graphs["time"].inputs:
        if spec.name in optional and (len(spec.shape) != 2 or not isinstance(spec.shape[1], int) or spec.shape[1] < 4):
            yield f"graphs.time: {spec.name} is {str(spec.shape)[:80]}: expected (n, a number)"


def _ports(manifest: Manifest) -> Iterator[str]:
    """The inputs of `denoise` that are off where they are zero."""
    recipe, graph = manifest.recipe, manifest.graphs.get("denoise")
    for name in recipe.ports:
        if name not in PORTS:
            yield f"recipe.ports has {name[:40]!r}: expected {', '.join(PORTS)}"
            continue
        inputs = [spec for spec in graph.inputs if spec.name.startswith(PORTS[name])] if graph else []
        yield from _of_images(inputs) if name == "ip-adapter" else _of_features(PORTS[name], inputs)


def _of_features(prefix: str, inputs: Sequence[TensorSpec]) -> Iterator[str]:
    """What is added to features of the UNet."""
    if [spec.name for spec in inputs] != [f"{prefix}{i:02d}" for i in range(len(inputs))] or not inputs:
        yield f"graphs.denoise has no inputs {prefix}00, {prefix}01, …, in this order"
    for spec in inputs:
        sides = [str(size).partition("/")[0] for size in spec.shape[2:]]
        if spec.shape[:1] != ("B*G",) or sides != ["h", "w"] or not isinstance(spec.shape[1], int):
            yield f"graphs.denoise: {spec.name[:40]} is {str(spec.shape)[:80]}: expected (B*G, a number, h/…, w/…)"


def _of_images(inputs: Sequence[TensorSpec]) -> Iterator[str]:
    """Keys and values of a picture's tokens, and the strength of each layer."""
    layers = (len(inputs) - 1) // 2
    names = [f"image_{kind}_{i:02d}" for kind in ("key", "value") for i in range(layers)] + ["image_strength"]
    if [spec.name for spec in inputs] != names or not layers:
        yield "graphs.denoise has no inputs image_key_00, …, image_value_00, …, image_strength, in this order"
        return
    for spec in inputs[:-1]:
        if spec.shape[:2] != ("B*G", "T") or len(spec.shape) != 3 or not isinstance(spec.shape[2], int):
            yield f"graphs.denoise: {spec.name} is {str(spec.shape)[:80]}: expected (B*G, T, a number)"
    if (inputs[-1].dtype, inputs[-1].shape) != ("float32", ("B*G", layers)):
        yield f"graphs.denoise: image_strength is {str(inputs[-1].shape)[:80]}: expected float32 (B*G, {layers})"


def _tensor(where: str, spec: TensorSpec) -> Iterator[str]:
    if spec.dtype not in DTYPES:
        yield f"{where}: {spec.name[:40]} has the dtype {spec.dtype[:40]!r}: expected one of {', '.join(DTYPES)}"
    for size in spec.shape:
        if isinstance(size, int) and not 0 < size < _HIGH:
            yield f"{where}: {spec.name[:40]} has the size {size}"
        if isinstance(size, str) and not (len(size) < 40 and _DIMENSION.fullmatch(size)):
            expected = f"expected a product of numbers and {_SYMBOLS}, or a part such as h/2"
            yield f"{where}: {spec.name[:40]} has the size {size[:40]!r}: {expected}"
        elif isinstance(size, str) and math.prod(int(part) for part in size.split("*") if part.isdigit()) >= _HIGH:
            yield f"{where}: {spec.name[:40]} has the size {size[:40]!r}"
    if not spec.shape:
        yield f"{where}: {spec.name[:40]} has no sizes"


def _input_symbols(name: str, graph: Graph) -> Iterator[str]:
    """Every size of an output must follow from those of the inputs."""
    known = {symbol for spec in graph.inputs for size in spec.shape for symbol in symbols_of(size)}
    for spec in graph.outputs:
        for symbol in {symbol for size in spec.shape for symbol in symbols_of(size)} - known:
            yield f"graphs.{name[:40]}: the size {symbol[:40]!r} of {spec.name[:40]} is not one of its inputs"


def _encoders(manifest: Manifest) -> Iterator[str]:
    if not 1 <= len(manifest.model.text_encoders) <= 8:
        yield f"model.text_encoders has {len(manifest.model.text_encoders)} entries: expected 1 or 2"
    if len({encoder.max_length for encoder in manifest.model.text_encoders}) > 1:
        yield "model.text_encoders have different max_length"
    for i, encoder in enumerate(manifest.model.text_encoders):
        where, graph = f"model.text_encoders[{i}]", manifest.graphs.get(encoder.graph)
        if graph is None:
            yield f"{where}.graph is {encoder.graph[:40]!r}, which is not in graphs"
            continue
        outputs = {spec.name: spec.shape for spec in graph.outputs}
        shape = ("n", encoder.hidden_states, encoder.max_length, encoder.hidden_size)
        if outputs.get("hidden_states") != shape:
            yield f"graphs.{encoder.graph[:40]} has hidden_states {outputs.get('hidden_states')}: expected {shape}"
        if [(spec.name, spec.shape) for spec in graph.inputs] != [("input_ids", ("n", encoder.max_length))]:
            yield f"graphs.{encoder.graph[:40]} must have the input input_ids ('n', {encoder.max_length}) alone"
        if encoder.pooled and (len(outputs.get("pooled", ())) != 2 or not isinstance(outputs["pooled"][1], int)):
            yield f"graphs.{encoder.graph[:40]} has no output pooled (n, P)"
        for word, ids in encoder.embeddings.items():
            if not ids or len(ids) > 1000 or not all(0 <= i < _HIGH for i in ids):
                yield f"{where}.embeddings: {word[:40]!r} needs 1 to 1000 ids that are not negative"


def _weights(manifest: Manifest) -> Iterator[str]:
    for parameter, uses in manifest.weights.items():
        for use in uses:
            where, graph = f"weights.{parameter[:100]}", manifest.graphs.get(use.graph)
            if graph is None or use.stored_dtype not in DTYPES or use.dtype not in DTYPES:
                yield f"{where}: unknown graph or dtype"
                continue
            if not all(0 <= side < _HIGH for side in use.shape):
                yield f"{where}: the shape {str(use.shape)[:80]} has sides out of range"
            elif use.offset is not None:
                data = manifest.files.get(f"{graph.file}.data")
                end = use.offset + math.prod(use.shape) * DTYPES[use.stored_dtype].bytes
                if use.offset < 0 or data is None or end > data.size:
                    yield f"{where}: bytes {use.offset} to {end} are not in {graph.file[:80]}.data"


def _quantization(manifest: Manifest) -> Iterator[str]:
    quantized = manifest.recipe.quantization
    if quantized is None:
        return
    where = "recipe.quantization"
    for name, known in (("to", QUANTIZED), ("target", QUANTIZED_FOR)):
        if (value := getattr(quantized, name)) not in known:
            yield f"{where}.{name} is {value[:40]!r}: expected {', '.join(known)}"
    for name, (least, most) in _OF_QUANTIZATION.items():
        yield from _outside(f"{where}.{name}", getattr(quantized, name), least, most)
    for name in quantized.graphs:
        if name not in manifest.graphs:
            yield f"{where}.graphs has {name[:40]!r}, which is not in graphs"
    for name in ("report", "calibration"):
        if (file := getattr(quantized, name)) is not None and file not in manifest.files:
            yield f"{where}.{name} is {file[:80]!r}, which files does not list"


def _engines(manifest: Manifest) -> Iterator[str]:
    for i, engine in enumerate(manifest.engines):
        if engine.file not in manifest.files:
            yield f"engines[{i}].file is {engine.file[:80]!r}, which files does not list"
        if engine.layers is not None and engine.layers not in manifest.files:
            yield f"engines[{i}].layers is {engine.layers[:80]!r}, which files does not list"
        yield from engine_faults(f"engines[{i}]", engine.profile, engine.compute_capabilities)


def engine_faults(where: str, profile: Any, capabilities: Any) -> Iterator[str]:
    """What is wrong with the sizes and GPUs of an engine."""
    for symbol, span in profile.items():
        if len(span) != 3 or not 0 < span[0] <= span[1] <= span[2] < _HIGH:
            yield f"{where}.profile.{symbol[:40]} is {str(span)[:80]}: expected 3 rising numbers above 0"
    for capability in capabilities:
        if not re.fullmatch(r"[0-9]{1,3}\.[0-9]{1,2}\+?", capability):
            yield f"{where} has the compute capability {capability[:40]!r}: expected a form such as 8.9 or 8.0+"
