"""The README's table of a GPU, from the summary of the GPU check. Knows its parts `device` and `latency`."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .tables import number, table

Figures = Mapping[str, Any]
SUMMARY = "summary.json"
_CASE = re.compile(r"(?P<case>[\w -]+), (?P<title>batch (?P<batch>\d+), (?P<steps>\d+) steps)")


def gpu_table(folder: Path) -> str:
    """What was measured on which GPU, and a row for each case: milliseconds an image, and over the floor.

    Raises `SystemExit` if the folder has no summary with latencies.
    """
    file = folder / SUMMARY
    parts = {part["part"]: part for part in json.loads(file.read_text(encoding="utf-8"))["parts"]}
    figures = _figures(parts, "latency")
    cases = {found: figures[name] for name in figures if (found := _CASE.fullmatch(name)) and "p50_ms" in figures[name]}
    if not cases:
        raise SystemExit(
            f"{file} has no latencies: run `benchmarks/gpu_check.sh full_size latency --out {folder}` first"
        )
    titles = sorted({(int(found["batch"]), int(found["steps"])) for found in cases})
    rows: dict[str, dict[tuple[int, int], Figures]] = {}
    for found, row in cases.items():
        rows.setdefault(found["case"], {})[int(found["batch"]), int(found["steps"])] = row
    head = [""]
    for batch, steps in titles:
        head += [f"batch {batch}, {steps} steps: ms an image", "p90", "a UNet call", "times the floor"]
    lines = [
        (_label(case), *_cells(row, titles)) for case, row in sorted(rows.items(), key=lambda item: _order(item[0]))
    ]
    text = (
        f"A random model of the size of Stable Diffusion 1.5 in fp16 at 512×512, with guidance, on {_gpu(parts)}: "
        "median and 90th percentile in milliseconds. The floor is the time of the graphs' operations and bytes at "
        f"rates that were measured on this card. [All that was measured](benchmarks/results/{folder.name}/summary.txt)."
    )
    return "\n\n".join((text, table(head, lines)))


def _cells(row: Mapping[tuple[int, int], Figures], titles: Sequence[tuple[int, int]]) -> list[str]:
    cells = []
    for batch, steps in titles:
        figures = row.get((batch, steps))
        if figures is None:
            cells += ["-"] * 4
            continue
        call = figures["stages_ms"]["denoise"] / steps if "stages_ms" in figures else None
        each = [number(figures[name] / batch) for name in ("p50_ms", "p90_ms")]
        cells += [*each, "-" if call is None else number(call), number(figures["p50_over_floor"])]
    return cells


def _label(case: str) -> str:
    return case if case.startswith("diffusers") else f"latentrt {case}"


def _order(case: str) -> tuple[bool, str]:
    """latentrt's own first."""
    return case.startswith("diffusers"), case


def _gpu(parts: Mapping[str, Any]) -> str:
    """The card, its driver, and the date."""
    of_device = _figures(parts, "device")
    cards = of_device.get("nvidia_smi") or [{"name": "an unknown GPU", "driver_version": "unknown"}]
    when = parts["latency"]["report"]["when"].partition(" ")[0]
    return f"{cards[0]['name']} (driver {cards[0]['driver_version']}), {when}"


def _figures(parts: Mapping[str, Any], name: str) -> Figures:
    report = (parts.get(name) or {}).get("report") or {}
    figures: Figures = report.get("figures", {})
    return figures
