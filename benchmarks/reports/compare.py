"""Compare two runs of a benchmark: which figures changed by more than their noise.

    python benchmarks/compare.py OLD.json NEW.json [--least 3] [--sigmas 3] [--other-machine]

Prints the ratio of the medians of each figure that both files hold, and how far it may be from 1 by chance. A figure is
called slower or faster only where median and fastest repetition are both beyond that band: a neighbour that disturbs a
few repetitions moves the one, a change of the code moves both. Exit status 1 where something is slower, 2 where the
runs cannot be compared. Times of fewer than three repetitions are shown and not judged, as their noise is not known.
Files are those of `benchmarks/results/`, or any whose last line is a benchmark's JSON.
"""

import argparse
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common.harness import show_table

MACHINE = ("cpu", "cores", "gpus", "threads")
MAD_TO_SIGMA = 1.4826  # of a normal distribution
TIMES = ("s", "ms", "pictures/s")
MEDIAN_TO_MEAN = math.sqrt(math.pi / 2)  # a median varies this much more than a mean


@dataclass(frozen=True, slots=True)
class Change:
    """One figure in both runs.

    Attributes:
        ratio: new median over old one.
        fastest: the same of the best repetitions.
        band: how far from 1 a ratio may be by chance.
        more_is_better: for rates.
    """

    name: str
    unit: str
    old: float
    new: float
    ratio: float
    fastest: float
    band: float
    more_is_better: bool

    @property
    def verdict(self) -> str:
        """ "slower", "faster" or "no change"."""
        better = -1 if self.more_is_better else 1
        worse = [r**better > 1 + self.band for r in (self.ratio, self.fastest)]
        improved = [r**-better > 1 + self.band for r in (self.ratio, self.fastest)]
        return "slower" if all(worse) else "faster" if all(improved) else "no change"


def change_of(old: Mapping[str, Any], new: Mapping[str, Any], *, least: float, sigmas: float) -> Change:
    """Compare two records of the same measurement; `least` is the narrowest band, as a share."""
    best = max if old["more_is_better"] else min
    medians = [statistics.median(run["values"]) for run in (old, new)]
    errors = [_relative_error(run["values"]) for run in (old, new)]
    unknown = old["unit"] in TIMES and min(len(run["values"]) for run in (old, new)) < 3
    return Change(
        name=old["name"],
        unit=old["unit"],
        old=medians[0],
        new=medians[1],
        ratio=medians[1] / medians[0],
        fastest=best(new["values"]) / best(old["values"]),
        band=math.inf if unknown else max(least, sigmas * math.hypot(*errors)),
        more_is_better=old["more_is_better"],
    )


def _relative_error(values: Sequence[float]) -> float:
    """Standard error of the median over the median, by the median absolute deviation, which outliers do not move."""
    median = statistics.median(values)
    sigma = MAD_TO_SIGMA * statistics.median(abs(value - median) for value in values)
    return MEDIAN_TO_MEAN * sigma / math.sqrt(len(values)) / abs(median)


def read(path: Path) -> dict[str, Any]:
    """A benchmark's JSON; `SystemExit` with the reason where it is none."""
    try:
        text = path.read_text(encoding="utf-8")
        try:
            found = json.loads(text)
        except json.JSONDecodeError:
            found = json.loads(text.splitlines()[-1])
    except (OSError, UnicodeDecodeError, ValueError, IndexError) as error:
        raise _incomparable(f"{path} cannot be read as a benchmark's JSON: {error}") from error
    if not isinstance(found, dict) or not found.get("measurements"):
        raise _incomparable(f"{path} holds no measurements: it is not the JSON of a benchmark that repeats")
    return found


def changes(
    old: Mapping[str, Any], new: Mapping[str, Any], *, least: float, sigmas: float, other_machine: bool = False
) -> list[Change]:
    """All figures that both runs hold; `SystemExit` where they are of another benchmark or machine."""
    if old["benchmark"] != new["benchmark"]:
        raise _incomparable(f"one is {old['benchmark']}, the other {new['benchmark']}: compare runs of one benchmark")
    cards = old["environment"], new["environment"]
    differing = [
        f"{key} {cards[0].get(key)!r} and {cards[1].get(key)!r}"
        for key in MACHINE
        if cards[0].get(key) != cards[1].get(key)
    ]
    if differing and not other_machine:
        raise _incomparable(f"the machines differ ({'; '.join(differing)}): --other-machine compares them all the same")
    records = [{record["name"]: record for record in run["measurements"]} for run in (old, new)]
    shared = [name for name in records[0] if name in records[1]]
    if not shared:
        raise _incomparable("the runs have no figure in common")
    return [change_of(records[0][name], records[1][name], least=least, sigmas=sigmas) for name in shared]


def _incomparable(reason: str) -> SystemExit:
    print(reason)
    return SystemExit(2)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Compare two runs of a benchmark.")
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--least", type=float, default=3, help="the narrowest band in percent; default: 3")
    parser.add_argument("--sigmas", type=float, default=3, help="standard errors of the band; default: 3")
    parser.add_argument("--other-machine", action="store_true", help="compare runs of different machines")
    arguments = parser.parse_args()
    old, new = read(arguments.old), read(arguments.new)
    found = changes(
        old, new, least=arguments.least / 100, sigmas=arguments.sigmas, other_machine=arguments.other_machine
    )
    rows = [
        (c.name, f"{c.old:,.4g}", f"{c.new:,.4g}", c.unit, f"{c.ratio:.3f}", f"± {c.band:.3f}", c.verdict)
        for c in found
    ]
    show_table(("figure", "old", "new", "", "new / old", "noise", ""), rows)
    names = [{record["name"] for record in run["measurements"]} for run in (old, new)]
    for only, where in ((names[0] - names[1], "old"), (names[1] - names[0], "new")):
        if only:
            print(f"only in the {where} run: {', '.join(sorted(only))}")
    verdicts = [change.verdict for change in found]
    print("\n" + ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in ("slower", "faster", "no change")))
    if "slower" in verdicts:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
