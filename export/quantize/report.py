"""The report of a quantization: a JSON file in the bundle, and lines for a terminal."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from .gate import Measured, Reference

REPORT = "quantization.json"
_FORMAT = "latentrt.quantization-report/1"


@dataclass(frozen=True, slots=True)
class LayerRow:
    """A layer of a graph.

    Attributes:
        graph, layer: names of graph and weight.
        kind: see `layers.LEVELS`.
        shape: of the weight.
        quantized: whether it is.
        reason: why it is not; empty if it is.
        cost: relative error of the guided prediction with this layer alone quantized; null where it was not measured.
    """

    graph: str
    layer: str
    kind: str
    shape: tuple[int, ...]
    quantized: bool
    reason: str
    cost: float | None


def report_json(rows: Sequence[LayerRow], known: Sequence[Reference], measured: Measured) -> str:
    """The text of the file: layers, and errors prompt by prompt."""
    prompts = [
        {
            "prompt": reference.prompt,
            "seed": reference.seed,
            "errors": [round(float(error), 6) for error in errors],
            "latents": latents,
            "psnr": decibels,
            "decoded": decoded,
        }
        for reference, errors, latents, decibels, decoded in zip(
            known, measured.errors, measured.latents, measured.psnr, measured.decoded, strict=True
        )
    ]
    content = {"format": _FORMAT, "layers": [asdict(row) for row in rows], "prompts": prompts}
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def lines(rows: Sequence[LayerRow], measured: Measured, sizes: Mapping[str, tuple[int, int]]) -> Iterator[str]:
    """What a reader wants to know.

    Args:
        sizes: graph -> bytes before and after.
    """
    quantized = [row for row in rows if row.quantized]
    yield f"{len(quantized)} of {len(rows)} layers are quantized"
    for graph, (before, after) in sizes.items():
        yield f"{graph}: {before / 2**20:,.1f} MiB -> {after / 2**20:,.1f} MiB ({after / before:.2f})"
    yield f"guided prediction, relative error: {measured.mean:.3f} in the mean, {measured.worst:.3f} at the worst call"
    worst, median = min(measured.psnr), float(np.median(measured.psnr))
    yield f"pictures: {median:.1f} dB in the median, {worst:.1f} dB at worst; latents {max(measured.latents):.3f}"
    costly = sorted((row for row in rows if row.cost is not None), key=lambda row: -(row.cost or 0))[:10]
    if costly:
        yield "layers that cost most, alone:"
        yield from (f"  {row.cost:.4f}  {row.layer}  ({row.kind})" for row in costly)
