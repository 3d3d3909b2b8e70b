"""What all parts of a report share: runs and their figures, tables in Markdown, numbers and names."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

Run = Mapping[str, Any]


def load(folder: Path) -> dict[str, Run]:
    """All runs of a device, by the name of their file. The summary of the GPU check is none."""
    read = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.json"))}
    return {name: run for name, run in read.items() if "benchmark" in run}


def measured(run: Run) -> dict[str, Run]:
    """The measurements of a run by name."""
    return {record["name"]: record for record in run["measurements"]}


def of_kind(runs: Mapping[str, Run], kind: str) -> list[Run]:
    """The runs of one benchmark, smallest model first."""
    order = {"shapes": 0, "medium": 1, "sd15": 2}
    found = [run for run in runs.values() if run["benchmark"] == kind]
    return sorted(found, key=lambda run: order.get(run["results"].get("model", ""), 9))


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def number(value: float) -> str:
    """Three significant digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def machine(run: Run) -> str:
    """The machine and the date, in one line."""
    return f"{_hardware(run)}, {run['date']}"


def machines(runs: Mapping[str, Run]) -> str:
    """The machine of all runs; where there are several, each with its runs. Cloud machines differ from day to day."""
    found: dict[str, list[str]] = {}
    for stem, run in runs.items():
        found.setdefault(_hardware(run), []).append(stem)
    lines = []
    for hardware, stems in found.items():
        dates = {runs[stem]["date"] for stem in stems}
        days = " to ".join(sorted({min(dates), max(dates)}))
        lines.append(f"{hardware}, {days}" + (f": {', '.join(stems)}" if len(found) > 1 else ""))
    return "\n".join(f"- {line}" for line in lines)


def _hardware(run: Run) -> str:
    card = run["environment"]
    name = ", ".join(gpu["name"] for gpu in card["gpus"]) or f"{card['cpu']}, {card['cores']} cores"
    extras = f" ({', '.join(card['instructions'])})" if not card["gpus"] and card.get("instructions") else ""
    return f"{name}{extras}, {card['ram_gib']:g} GiB"


def title(run: Run) -> str:
    """Model, size and steps of a run."""
    r = run["results"]
    return f"{r['model']}, {r['width']}x{r['height']}, {r['steps']} steps"


def cell(row: Mapping[str, float], key: str, unit: str) -> str:
    """A figure with its unit, "-" if it is missing."""
    return f"{number(row[key])} {unit}" if key in row else "-"
