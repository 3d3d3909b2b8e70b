"""The charts of a benchmark report."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes

OURS, THEIRS, GREY = "#76b900", "#5b6b7a", "#c9d1d9"
STAGES = ("#5b6b7a", "#8fa3b5", "#c3d0dc", "#e0b64f", "#76b900", "#3f7f4f", "#b07aa1", "#cccccc")
DPI = 110


def peers(rows: Mapping[str, Mapping[str, float]], title: str, file: Path) -> None:
    """Bars of latency, cold start and memory, one line per peer, ours in colour."""
    kinds = (("latency", "latency, s"), ("first", "first picture of a new process, s"), ("memory", "peak memory, GB"))
    shown = [(key, name) for key, name in kinds if any(key in row for row in rows.values())]
    names = [peer for peer, row in rows.items() if row][::-1]
    figure, axes = pyplot.subplots(
        1, len(shown), figsize=(4.2 * len(shown), 1.1 + 0.36 * len(names)), squeeze=False, layout="constrained"
    )
    for axis, (key, name) in zip(axes[0], shown, strict=True):
        values = [rows[peer].get(key, 0.0) for peer in names]
        colours = [OURS if peer.startswith("latentrt") else THEIRS for peer in names]
        _bars(axis, names if axis is axes[0][0] else [""] * len(names), values, colours)
        axis.set_title(name, fontsize=10)
    figure.suptitle(title, fontsize=11)
    _save(figure, file)


def stages(results: Mapping[str, Any], title: str, file: Path) -> None:
    """Left: the time of each stage, one line per backend. Right: the time of each graph over its floor."""
    spent = results["milliseconds"]
    names = list(next(iter(spent.values())))
    figure, (left, right) = pyplot.subplots(
        1, 2, figsize=(11, 1.6 + 0.5 * max(len(spent), 4)), width_ratios=(3, 2), layout="constrained"
    )
    for y, backend in enumerate(spent):
        start = 0.0
        for name, colour in zip(names, STAGES, strict=False):
            runs = results["steps"] if name == "denoise" else 1
            width = spent[backend][name] * runs / 1000
            label = (f"{name} x {runs}" if runs > 1 else name) if y == 0 else None
            left.barh(y, width, left=start, color=colour, label=label)
            start += width
        left.text(start, y, f" {start:.3g} s", va="center", fontsize=9)
    left.set_yticks(range(len(spent)), list(spent), fontsize=9)
    left.set_xlim(right=1.15 * left.dataLim.xmax)
    left.set_title("seconds by stage", fontsize=10)
    left.legend(fontsize=8, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.1), frameon=False)
    graphs = [name for name in names if name in results["floors"]]
    height = 0.8 / len(spent)
    for i, (backend, colour) in enumerate(zip(spent, (OURS, THEIRS, GREY), strict=False)):
        times = [spent[backend][graph] / results["floors"][graph]["floor_ms"] for graph in graphs]
        places = [y + i * height for y in range(len(graphs))]
        right.barh(places, times, height=height, color=colour, label=backend)
        for y, value in zip(places, times, strict=True):
            right.text(value, y, f" {value:.3g}", va="center", fontsize=8)
    right.set_yticks([y + 0.4 - height / 2 for y in range(len(graphs))], graphs, fontsize=9)
    right.axvline(1, color="black", linewidth=0.8)
    right.set_xscale("log")
    right.margins(x=0.2)
    right.set_title("times the floor", fontsize=10)
    right.legend(fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.1), frameon=False)
    figure.suptitle(title, fontsize=11)
    _save(figure, file)


def batches(found: Mapping[str, Mapping[str, Any]], model: str, file: Path) -> None:
    """Latency by batch size, a line for each backend; dotted, the latency of the same pictures one after the other."""
    lines: dict[str, dict[int, float]] = {}
    for name, record in found.items():
        match = re.fullmatch(rf"{model}: (.+): (\d+x\d+), batch (\d+), (\d+) steps", name)
        if match:
            backend, size, batch, steps = match[1], match[2], int(match[3]), match[4]
            lines.setdefault(f"{backend}, {size}, {steps} steps", {})[batch] = record["p50"]
    figure, axis = pyplot.subplots(figsize=(6, 4))
    for (name, points), colour in zip(
        ((name, points) for name, points in lines.items() if len(points) > 1), (OURS, THEIRS, STAGES[3]), strict=False
    ):
        batch = sorted(points)
        axis.plot(batch, [points[b] for b in batch], "o-", color=colour, label=name)
        axis.plot(batch, [points[batch[0]] * b / batch[0] for b in batch], ":", color=colour, linewidth=0.9)
    axis.set(xlabel="pictures in a batch (dotted: one after the other)", ylabel="s", title=model)
    axis.set_ylim(bottom=0)
    axis.legend(fontsize=8, frameon=False)
    _save(figure, file)


def _bars(axis: Axes, names: list[str], values: list[float], colours: list[str]) -> None:
    axis.barh(range(len(values)), values, color=colours)
    for y, value in enumerate(values):
        axis.text(value, y, f" {value:.3g}" if value else " -", va="center", fontsize=8)
    axis.set_yticks(range(len(values)), names, fontsize=9)
    axis.margins(x=0.18)
    axis.xaxis.set_visible(False)
    for side in ("top", "right", "bottom"):
        axis.spines[side].set_visible(False)


def _save(figure: Any, file: Path) -> None:
    figure.savefig(file, dpi=DPI, bbox_inches="tight", metadata={"Software": None})
    pyplot.close(figure)
