"""The manifest of a quantized bundle, from that of its source."""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from latentrt.runtime.bundle import Bundle, Golden, Manifest, Weight, hashed_files, manifest
from latentrt.runtime.goldens import verify_goldens
from latentrt.runtime.pipeline import Pipeline
from latentrt.runtime.protocols import Backend
from latentrt.runtime.weights import sha256_of_lora

# Limits of goldens, in multiples of what was measured, and decibels below it: another CPU rounds otherwise.
_SLACK, _DECIBELS = 1.5, 3.0
_MOST, _LEAST_PSNR = 0.5, 10.0


def source_sha256(source: Bundle, loras: Mapping[Path | str, float]) -> str:
    """A hash of all graphs and weights of a bundle, and of LoRAs with their factors."""
    files = {file for graph in source.manifest.graphs.values() for file in graph.files}
    parts = [f"{name} {entry.sha256}" for name, entry in sorted(source.manifest.files.items()) if name in files]
    parts += [f"{sha256_of_lora(Path(path))} {factor!r}" for path, factor in loras.items()]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def size_of(bundle: Bundle, graph: str) -> int:
    """Bytes of a graph and its weights."""
    files = [bundle.path / name for name in bundle.graph(graph).files]
    return sum(file.stat().st_size for file in files if file.exists())


def with_limits(bundle: Bundle, backend: Backend) -> Golden | None:
    """The bundle's golden with limits that this bundle keeps; None if it has none, or differs more than limits may."""
    golden = bundle.manifest.golden
    if golden is None:
        return None
    values = {check.name: check.value for check in verify_goldens(Pipeline(bundle, backend)) if check.value is not None}
    if values["latents"] > _MOST:
        return None
    texts = [value for name, value in values.items() if "text" in name]
    return replace(
        golden,
        embedding_tolerance=_raised(golden.embedding_tolerance, max(texts)),
        latents_tolerance=_raised(golden.latents_tolerance, values["latents"]),
        psnr_floor=max(_LEAST_PSNR, min(golden.psnr_floor, round(values["image"] - _DECIBELS, 1))),
    )


def _raised(limit: float, value: float) -> float:
    return limit if value * _SLACK <= limit else min(_MOST, float(f"{value * _SLACK:.2g}"))


def write_manifest(folder: Path, source: Manifest, quantization: manifest.Quantization, golden: Golden | None) -> None:
    """Write `bundle.json` of a folder that holds everything else."""
    content = replace(
        source,
        format=manifest.FORMATS[1],
        recipe=replace(source.recipe, quantization=quantization),
        weights=_weights(source, quantization.graphs),
        engines=(),
        golden=golden,
        files=hashed_files(folder),
    )
    (folder / manifest.MANIFEST).write_text(manifest.manifest_json(content), encoding="utf-8")


def _weights(source: Manifest, quantized: tuple[str, ...]) -> dict[str, tuple[Weight, ...]]:
    """The parameters of all other graphs: in a quantized one, also those in float may have changed (SmoothQuant)."""
    left = {name: tuple(use for use in uses if use.graph not in quantized) for name, uses in source.weights.items()}
    return {name: uses for name, uses in left.items() if uses}
