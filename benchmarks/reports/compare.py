"""Compare two runs of a benchmark: which figures changed by more than their noise?

    python -m benchmarks.reports.compare OLD.json NEW.json [--least 3] [--sigmas 3] [--other-machine]

For each figure that both files hold, prints the ratio of the medians, and the band around 1 that noise can explain. A
figure is slower or faster only if the median and the fastest repetition are both outside the band: other work on the
machine disturbs some repetitions and moves the median, a change of the code moves both. Times with fewer than three
repetitions are printed but not judged, as their noise is unknown. The exit status is 1 if a figure is slower, and 2 if
the runs cannot be compared. Files are those of `benchmarks/results/`, or any whose last line is a benchmark's JSON.
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
MEDIAN_TO_MEAN = math.sqrt(math.pi / 2)  # standard error of a median over that of a mean


@dataclass(frozen=True, slots=True)
class Change:
    """One figure in both runs.

    Attributes:
        name: of the measurement.
        unit: of `old` and `new`.
        old: median of the old run.
        new: median of the new run.
        ratio: new median over old median.
        fastest: new best repetition over old best repetition.
        band: how far from 1 a ratio can be by noise alone.
        more_is_better: true for rates.
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
    """Compare two records of the same measurement; `least` is the minimum width of the band, as a fraction."""
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
    """Standard error of the median over the median, from the median absolute deviation, which is robust to outliers."""
    median = statistics.median(values)
    sigma = MAD_TO_SIGMA * statistics.median(abs(value - median) for value in values)
    return MEDIAN_TO_MEAN * sigma / math.sqrt(len(values)) / abs(median)


def read(path: Path) -> dict[str, Any]:
    """Read a benchmark's JSON; exit with the reason if it is not one."""
    try:
        text = path.read_text(encoding="utf-8")
        try:
            found = json.loads(text)
        except json.JSONDecodeError:
            found = json.loads(text.splitlines()[-1])
    except (OSError, UnicodeDecodeError, ValueError, IndexError) as error:
        raise _incomparable(f"cannot read {path} as a benchmark's JSON: {error}") from error
    if not isinstance(found, dict) or not found.get("measurements"):
        raise _incomparable(f"{path} holds no measurements")
    return found


def changes(
    old: Mapping[str, Any], new: Mapping[str, Any], *, least: float, sigmas: float, other_machine: bool = False
) -> list[Change]:
    """Compare all figures that both runs hold; exit if the benchmarks or machines differ."""
    if old["benchmark"] != new["benchmark"]:
        raise _incomparable(f"the runs are of different benchmarks: {old['benchmark']} and {new['benchmark']}")
    cards = old["environment"], new["environment"]
    differing = [
        f"{key} {cards[0].get(key)!r} and {cards[1].get(key)!r}"
        for key in MACHINE
        if cards[0].get(key) != cards[1].get(key)
    ]
    if differing and not other_machine:
        raise _incomparable(f"the machines differ ({'; '.join(differing)}): use --other-machine to compare anyway")
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
    parser.add_argument("--least", type=float, default=3, help="minimum width of the band in percent; default: 3")
    parser.add_argument("--sigmas", type=float, default=3, help="width of the band in standard errors; default: 3")
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
