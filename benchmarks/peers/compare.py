"""Measure each peer, after checking that it draws the same picture.

Knows workers and pictures, but not which peers there are or how they are installed.
"""

import math
import statistics
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.common.harness import Measurement, Target, interleaved

from .environments import PeerError
from .workers import Residents, Worker


@dataclass(frozen=True, slots=True)
class Case:
    """A peer to measure: the command of its worker, and its "load" request."""

    command: Sequence[str | Path]
    load: Mapping[str, Any]


@dataclass(slots=True)
class Outcome:
    """The figures and facts of one run over all cases; `reasons` says why a case is not compared."""

    figures: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, figure: str, value: float) -> None:
        """Add a repetition of a figure."""
        self.figures.setdefault(name, {}).setdefault(figure, []).append(value)

    def drop(self, name: str, reason: str) -> None:
        """Exclude a case, and keep the reason."""
        self.reasons[name] = reason
        self.figures.pop(name, None)

    def measurements(self, model: str) -> list[Measurement]:
        """All figures, named as "MODEL: PEER: FIGURE"."""
        return [
            Measurement(f"{model}: {name}: {figure}", "MB" if figure == "peak memory" else "s", values)
            for name, figures in self.figures.items()
            for figure, values in figures.items()
        ]


def goals(outcome: Outcome, megabytes: Mapping[str, float], *, reduced: Collection[str] = ()) -> list[Target]:
    """Targets of our cases against the others: ratios of medians, for figures that both sides have.

    Ours are the cases whose name starts with "latentrt". The case "latentrt" runs on ONNX Runtime, "diffusers" in
    float32.

    Args:
        outcome: the figures.
        megabytes: installed size of the environment, by case.
        reduced: cases with lower precision, which are not compared with.
    """
    medians = {
        name: {figure: statistics.median(values) for figure, values in figures.items()}
        for name, figures in outcome.figures.items()
    }
    for name, row in medians.items():
        if name in megabytes:
            row["size"] = megabytes[name]
    ours = {name: row for name, row in medians.items() if name.startswith("latentrt")}
    theirs = {name: row for name, row in medians.items() if name not in ours and name not in reduced}

    def target(name: str, figure: str, mine: Mapping[str, Any], other: Mapping[str, Any], most: float) -> list[Target]:
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


def psnr(picture: Path, reference: Path) -> float:
    """PSNR of two pictures in decibels; inf if they are equal, -inf if their sizes differ."""
    a, b = (np.asarray(Image.open(file).convert("RGB"), dtype=np.float64) for file in (picture, reference))
    if a.shape != b.shape:
        return -math.inf
    error = np.mean((a - b) ** 2)
    return math.inf if error == 0 else float(10 * np.log10(255**2 / error))


def compare(
    cases: Mapping[str, Case],
    job: Mapping[str, Any],
    folder: Path,
    *,
    psnr_floor: float,
    cold_starts: int,
    repetitions: int,
    limit: float,
    keep_first: bool = False,
) -> Outcome:
    """Measure all cases in turns; the first that works is the reference.

    Each case first draws once in a process of its own, and is excluded if its picture differs. Then follow cold
    starts, then pictures by workers that stay loaded.

    Args:
        cases: what is compared, the reference first.
        job: the "draw" request, without the picture's file.
        folder: where the pictures are written.
        psnr_floor: minimum PSNR against the reference's picture, in decibels.
        cold_starts: counted repetitions of the cold start.
        repetitions: counted pictures of loaded workers; with 0, the second pictures of cold starts are the latency.
        limit: megabytes that the loaded workers may use together.
        keep_first: count the first process of a case as a cold start, too.
    """
    outcome = Outcome()
    megabytes: dict[str, float] = {}
    reference: Path | None = None
    for name, case in cases.items():
        picture = folder / f"{name}.png"
        try:
            megabytes[name] = _cold_start(name, case, {**job, "picture": str(picture)}, outcome)
        except PeerError as error:
            outcome.drop(name, str(error))
            continue
        if not keep_first:
            outcome.figures.pop(name)  # its libraries may not have been in the page cache
        reference = reference or picture
        found = psnr(picture, reference)
        outcome.facts[name]["psnr"] = None if math.isinf(found) else found
        if found < psnr_floor:
            outcome.drop(name, f"draws another picture: PSNR {found:.1f} dB, expected at least {psnr_floor:g} dB")

    def guarded(name: str, measure: Any) -> None:
        if name not in outcome.reasons:
            try:
                measure(name)
            except PeerError as error:
                outcome.drop(name, str(error))

    def cold(name: str) -> None:
        _cold_start(name, cases[name], job, outcome)

    agreed = [name for name in cases if name not in outcome.reasons]
    if cold_starts:
        interleaved({name: lambda name=name: guarded(name, cold) for name in agreed}, cold_starts, warm_up=0)
    commands = {name: cases[name].command for name in agreed}
    residents = Residents(commands, {name: cases[name].load for name in agreed}, megabytes, limit)
    taken: dict[str, list[float]] = {name: [] for name in agreed}

    def warm(name: str) -> None:
        taken[name].append(residents.draw(name, **job))

    try:
        if repetitions:
            interleaved({name: lambda name=name: guarded(name, warm) for name in agreed}, repetitions, warm_up=1)
    finally:
        residents.close()
    for name, seconds in taken.items():
        if name not in outcome.reasons:
            for value in seconds[1:] if repetitions else outcome.figures[name]["cold start, second picture"]:
                outcome.add(name, "latency", value)
            outcome.facts[name]["starts for latency"] = residents.starts[name]
    return outcome


def _cold_start(name: str, case: Case, job: Mapping[str, Any], outcome: Outcome) -> float:
    """Start a process, load, draw twice; return the peak memory in megabytes."""
    start = time.perf_counter()
    with Worker(case.command) as worker:
        loaded = worker.ask("load", **case.load)
        first = worker.ask("draw", **job)
        until_first = time.perf_counter() - start
        second = worker.ask("draw", **{**job, "picture": None})
        memory = float(worker.ask("memory")["megabytes"])
    outcome.add(name, "load", loaded["seconds"])
    outcome.add(name, "cold start, first picture", until_first)
    outcome.add(name, "cold start, second picture", second["seconds"])
    outcome.add(name, "peak memory", memory)
    outcome.facts[name] = {**outcome.facts.get(name, {}), **loaded["facts"], "unet_calls": first["unet_calls"]}
    return memory
