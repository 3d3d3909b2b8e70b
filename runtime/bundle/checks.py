"""What a manifest must say besides its types: ranges of numbers and names that exist; of graphs see `graph_checks`.

A bundle may come from anywhere. What is out of range is refused when it is opened, and not where it is first used.
"""

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from latentrt.runtime.arrays import DTYPES

from .graph_checks import HIGH, graph_faults
from .manifest import QUANTIZED, QUANTIZED_FOR, Contents, File, Manifest

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
    "bos": (0, HIGH),
    "eos": (0, HIGH),
    "pad": (0, HIGH),
    "hidden_size": (1, 65536),
    "hidden_states": (1, 1024),
}
_OF_QUANTIZATION: dict[str, tuple[float, float]] = {
    "level": (1, 3),
    "prompts": (0, HIGH),
    **dict.fromkeys(("gate_mean", "gate_worst", "error_mean", "error_worst", "psnr"), (0, 1000)),
}


def faults(manifest: Manifest) -> Iterator[str]:
    """What is wrong, one sentence each."""
    yield from _numbers(manifest)
    yield from _files(manifest)
    yield from _encoders(manifest)
    yield from graph_faults(manifest)
    yield from _weights(manifest)
    yield from engines_faults(manifest)
    yield from _quantization(manifest)


def _numbers(manifest: Manifest) -> Iterator[str]:
    for path, (least, most) in _RANGES.items():
        record, name = path.split(".")
        if (part := getattr(manifest, record)) is not None:
            yield from outside(path, getattr(part, name), least, most)
    for i, encoder in enumerate(manifest.model.text_encoders):
        for name, (least, most) in _OF_ENCODER.items():
            yield from outside(f"model.text_encoders[{i}].{name}", getattr(encoder, name), least, most)
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


def outside(path: str, value: Any, least: float, most: float) -> Iterator[str]:
    """Whether a number is out of its range."""
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
    yield from file_faults(manifest.files)


def file_faults(files: Mapping[str, File]) -> Iterator[str]:
    """What is wrong with names, sizes and hashes of files."""
    for name, file in files.items():
        parts = PurePosixPath(name)
        if parts.is_absolute() or ".." in parts.parts or "\\" in name or "\0" in name or not parts.parts:
            yield f"files lists a file outside the bundle: {name[:80]!r}"
        if file.size < 0 or (file.sha256 and not re.fullmatch("[0-9a-f]{64}", file.sha256)):
            yield f"files.{name[:80]} has no valid size and sha256"


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
            if not ids or len(ids) > 1000 or not all(0 <= i < HIGH for i in ids):
                yield f"{where}.embeddings: {word[:40]!r} needs 1 to 1000 ids that are not negative"


def _weights(manifest: Manifest) -> Iterator[str]:
    for parameter, uses in manifest.weights.items():
        for use in uses:
            where, graph = f"weights.{parameter[:100]}", manifest.graphs.get(use.graph)
            if graph is None or use.stored_dtype not in DTYPES or use.dtype not in DTYPES:
                yield f"{where}: unknown graph or dtype"
                continue
            if not all(0 <= side < HIGH for side in use.shape):
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
        yield from outside(f"{where}.{name}", getattr(quantized, name), least, most)
    for name in quantized.graphs:
        if name not in manifest.graphs:
            yield f"{where}.graphs has {name[:40]!r}, which is not in graphs"
    for name in ("report", "calibration"):
        if (file := getattr(quantized, name)) is not None and file not in manifest.files:
            yield f"{where}.{name} is {file[:80]!r}, which files does not list"


def engines_faults(manifest: Contents) -> Iterator[str]:
    """What is wrong with the list of engines."""
    for i, engine in enumerate(manifest.engines):
        if engine.file not in manifest.files:
            yield f"engines[{i}].file is {engine.file[:80]!r}, which files does not list"
        if engine.layers is not None and engine.layers not in manifest.files:
            yield f"engines[{i}].layers is {engine.layers[:80]!r}, which files does not list"
        yield from engine_faults(f"engines[{i}]", engine.profile, engine.compute_capabilities)


def engine_faults(where: str, profile: Any, capabilities: Any) -> Iterator[str]:
    """What is wrong with the sizes and GPUs of an engine."""
    for symbol, span in profile.items():
        if len(span) != 3 or not 0 < span[0] <= span[1] <= span[2] < HIGH:
            yield f"{where}.profile.{symbol[:40]} is {str(span)[:80]}: expected 3 rising numbers above 0"
    for capability in capabilities:
        if not re.fullmatch(r"[0-9]{1,3}\.[0-9]{1,2}\+?", capability):
            yield f"{where} has the compute capability {capability[:40]!r}: expected a form such as 8.9 or 8.0+"
