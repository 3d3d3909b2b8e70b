"""The parts of a report that compare latentrt with its peers: pictures, UNet calls, installed size."""

import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from . import charts
from .tables import Run, cell, measured, number, table, title

PEER_FIGURES = {
    "latency": ("latency", "s", 1),
    "first": ("cold start, first picture", "s", 1),
    "second": ("cold start, second picture", "s", 1),
    "memory": ("peak memory", "MB", 1e-3),
}


def peers_section(run: Run, folder: Path) -> Iterator[str]:
    """The figures of each peer, and why some are missing."""
    results, found = run["results"], measured(run)
    model = results["model"]
    rows = peer_rows(run)
    fastest = min((row["latency"] for row in rows.values() if "latency" in row), default=1.0)
    yield f"## Peers: {title(run)}"
    yield (
        "Same weights, prompt, seed, steps, scheduler and initial latents; each in an environment of its own, taking "
        "turns. p50; memory is the peak of the process that drew."
    )
    head = ("", "latency", "min – p90", "over the fastest", "first picture", "second", "memory", "PSNR")
    lines = []
    for peer, row in rows.items():
        record = found.get(f"{model}: {peer}: latency")
        span = f"{number(record['min'])} – {number(record['p90'])} s" if record else "-"
        lines.append(
            (
                peer,
                cell(row, "latency", "s"),
                span,
                f"{row['latency'] / fastest:.2f}" if "latency" in row else "-",
                cell(row, "first", "s"),
                cell(row, "second", "s"),
                cell(row, "memory", "GB"),
                _agreement(results["facts"].get(peer)),
            )
        )
    yield table(head, lines)
    if results["reasons"]:
        yield "\n".join(f"- {peer}: {reason}" for peer, reason in results["reasons"].items())
    yield f"![latency, cold start and memory of each](peers-{model}.png)"
    charts.peers(rows, title(run), folder / f"peers-{model}.png")


def _agreement(facts: Mapping[str, Any] | None) -> str:
    """How close a picture is to that of the first peer, and to that of the same program in full precision."""
    if facts is None:
        return "-"
    first = "equal" if facts["psnr"] is None else f"{facts['psnr']:.0f} dB"
    return f"{first}; {_own(facts)} to its own fp32" if "psnr own" in facts else first


def _own(facts: Mapping[str, Any]) -> str:
    """The median of the decibels to the same program in full precision."""
    return f"{statistics.median(facts['psnr own']):.0f} dB" if "psnr own" in facts else "-"


def calls_section(run: Run) -> Iterator[str]:
    """Milliseconds, memory and size of each peer's UNet calls by precision, and why some are missing."""
    results, found = run["results"], measured(run)
    model = results["model"]
    yield f"## UNet calls: {model}, {results['width']}x{results['height']}"
    yield (
        f"One call with {results['groups']} guidance groups on the same inputs, taking turns. p50; memory is the peak "
        "of a process that loads the UNet and calls it twice; dB is the prediction's signal-to-noise ratio against the "
        "same program in fp32."
    )
    lines = []
    for peer, facts in results["facts"].items():
        names = ("call", "peak memory", "UNet on disk")
        records = [found.get(f"{model}: {peer}: {name}") for name in names]
        if not all(records):
            continue
        call, memory, disk = (record or {} for record in records)
        spans = f"{number(1000 * call['p50'])} ms", f"{number(1000 * call['min'])} – {number(1000 * call['p90'])} ms"
        megabytes = (f"{memory['p50'] / 1000:.2f} GB", f"{number(disk['p50'])} MB")
        lines.append((facts["precision"], peer, *spans, *megabytes, _own(facts)))
    yield table(("precision", "", "call", "min – p90", "memory", "UNet on disk", "dB"), lines)
    if results["reasons"]:
        yield "\n".join(f"- {peer}: {reason}" for peer, reason in results["reasons"].items())


def peer_rows(run: Run) -> dict[str, dict[str, float]]:
    """Medians of the existing figures of each peer; latency and cold start in seconds, memory in GB."""
    found, model = measured(run), run["results"]["model"]
    rows: dict[str, dict[str, float]] = {}
    for peer in run["results"]["environments"]:
        names = {key: (f"{model}: {peer}: {name}", scale) for key, (name, _, scale) in PEER_FIGURES.items()}
        rows[peer] = {key: found[name]["p50"] * scale for key, (name, scale) in names.items() if name in found}
    return rows


def sizes_section(run: Run) -> Iterator[str]:
    """Disk space and import time of each environment."""
    found = measured(run)
    names = [name.removesuffix(": installed size") for name in found if name.endswith(": installed size")]
    if not names:
        return
    yield "## Installed size and import"
    rows = []
    for name in names:
        spent = found.get(f"{name}: import")
        rows.append(
            (name, f"{found[f'{name}: installed size']['p50']:,.0f} MB", f"{spent['p50']:,.0f} ms" if spent else "-")
        )
    yield table(("environment", "site-packages", "import"), rows)
