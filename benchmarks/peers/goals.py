"""What the figures of a comparison are held against.

Ours are the cases whose name starts with "latentrt". A case in full precision has the precision of the first one.
"""

import math
import statistics
from collections.abc import Mapping
from typing import Any

from benchmarks.common.harness import Target, median_ratio

from .compare import Case, Outcome

Rows = Mapping[str, Mapping[str, Any]]


def is_ours(name: str) -> bool:
    """Whether a case is latentrt."""
    return name.startswith("latentrt")


def goals(outcome: Outcome, megabytes: Mapping[str, float], cases: Mapping[str, Case]) -> list[Target]:
    """Targets of our cases against the others in full precision: ratios of medians, for figures that both sides have.

    The case "latentrt" runs on ONNX Runtime, "diffusers" in float32.

    Args:
        outcome: the figures.
        megabytes: installed size of the environment, by case.
        cases: all of them, the reference first.
    """
    medians = {
        name: {figure: statistics.median(values) for figure, values in figures.items()}
        for name, figures in outcome.figures.items()
        if cases[name].precision == next(iter(cases.values())).precision
    }
    for name, row in medians.items():
        if name in megabytes:
            row["size"] = megabytes[name]
    ours = {name: row for name, row in medians.items() if is_ours(name)}
    theirs = {name: row for name, row in medians.items() if name not in ours}

    def target(name: str, figure: str, mine: Rows, other: Rows, most: float) -> list[Target]:
        best, least = ([row[figure] for row in rows.values() if figure in row] for rows in (mine, other))
        return [Target(name, min(best) / min(least), most, "times")] if best and least else []

    plain, diffusers = ({n: row for n, row in medians.items() if n == name} for name in ("latentrt", "diffusers"))
    return [
        *target("latency of our best engine over the fastest peer's", "latency", ours, theirs, 1.0),
        *target("latency with ONNX Runtime over diffusers'", "latency", plain, diffusers, 0.9),
        *target("first picture of a process over diffusers'", "cold start, first picture", plain, diffusers, 0.25),
        *target("installed size over diffusers'", "size", plain, diffusers, 0.2),
        *target("peak memory over the leanest peer's at full precision", "peak memory", ours, theirs, 1.0),
    ]


def precision_goals(figure: str, outcome: Outcome, cases: Mapping[str, Case]) -> list[Target]:
    """Targets of a figure at each reduced precision, and at the best that each side has: medians of ratios in turns.

    Quality is the median of the facts "psnr own". A case of unknown quality is compared at its precision alone.
    """
    timed = {name: rows[figure] for name, rows in outcome.figures.items() if figure in rows}
    targets = []
    reduced = dict.fromkeys(case.precision for case in cases.values() if case.own)
    for precision in reduced:
        names = [name for name in timed if cases[name].precision == precision]
        targets += _fastest(f"{figure} at {precision}: ours over the fastest peer's", timed, names, names, 1.0)
    if not targets:
        return []
    quality = {name: _quality(name, outcome, cases) for name in timed}
    ours = _minimum(timed, [name for name in timed if is_ours(name) and not math.isnan(quality[name])])
    as_good = [name for name in timed if ours and quality[name] >= quality[ours]]
    what = f"{figure} of our fastest over that of the fastest peer with its quality or better"
    return targets + _fastest(what, timed, [ours] if ours else [], as_good, 0.9)


def _fastest(
    what: str, timed: Mapping[str, list[float]], mine: list[str], other: list[str], most: float
) -> list[Target]:
    ours = _minimum(timed, [name for name in mine if is_ours(name)])
    theirs = _minimum(timed, [name for name in other if not is_ours(name)])
    if ours is None or theirs is None:
        return []
    a, b = timed[ours], timed[theirs]
    ratio = median_ratio(a, b) if len(a) == len(b) else statistics.median(a) / statistics.median(b)
    return [Target(f"{what} ({ours}, {theirs})", ratio, most, "times")]


def _minimum(timed: Mapping[str, list[float]], names: list[str]) -> str | None:
    return min(names, key=lambda name: statistics.median(timed[name]), default=None)


def _quality(name: str, outcome: Outcome, cases: Mapping[str, Case]) -> float:
    """Decibels against the own case in full precision; infinite for one in full precision, NaN if it is unknown."""
    if cases[name].own is None:
        return math.inf
    found = outcome.facts.get(name, {}).get("psnr own")
    return statistics.median(found) if found else math.nan
