"""Measure each peer, after checking that it draws the same picture.

Knows workers and pictures, but not which peers there are or how they are installed.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.common.harness import Measurement, interleaved

from .environments import PeerError
from .workers import Residents, Worker

EQUAL = 120.0  # decibels of equal pictures, as JSON has no infinity
MEGABYTES = ("peak memory", "UNet on disk")


@dataclass(frozen=True, slots=True)
class Case:
    """A peer to measure.

    Attributes:
        command: of its worker.
        load: the "load" request.
        precision: see `Peer`.
        own: the case of the same program in full precision; None for one that is in full precision.
    """

    command: Sequence[str | Path]
    load: Mapping[str, Any]
    precision: str = "fp32"
    own: str | None = None


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
            Measurement(f"{model}: {name}: {figure}", "MB" if figure in MEGABYTES else "s", values)
            for name, figures in self.figures.items()
            for figure, values in figures.items()
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
    jobs: Sequence[Mapping[str, Any]],
    folder: Path,
    *,
    psnr_floor: float,
    reduced_floor: float,
    cold_starts: int,
    repetitions: int,
    limit: float,
    keep_first: bool = False,
) -> Outcome:
    """Measure all cases in turns; the first that works is the reference.

    Each case first draws in a process of its own, and is excluded if its first picture differs. Then follow cold
    starts, then pictures by workers that stay loaded.

    Args:
        cases: what is compared, the reference first, and each after its own case in full precision.
        jobs: "draw" requests, without the picture's file. The first is measured; with all of them, the facts of a case
            of reduced precision get "psnr own": the PSNR of each picture against that of its own case.
        folder: where the pictures are written.
        psnr_floor: minimum PSNR against the reference's picture, in decibels.
        reduced_floor: the same for cases of reduced precision.
        cold_starts: counted repetitions of the cold start.
        repetitions: counted pictures of loaded workers; with 0, the second pictures of cold starts are the latency.
        limit: megabytes that the loaded workers may use together.
        keep_first: count the first process of a case as a cold start, too.
    """
    outcome = Outcome()
    megabytes: dict[str, float] = {}
    reference: Path | None = None
    for name, case in cases.items():
        pictures = [folder / f"{name}{f'-{i}' if i else ''}.png" for i in range(len(jobs))]
        wanted = [{**job, "picture": str(picture)} for job, picture in zip(jobs, pictures, strict=True)]
        try:
            megabytes[name] = _cold_start(name, case, wanted, outcome)
        except PeerError as error:
            outcome.drop(name, str(error))
            continue
        if not keep_first:
            outcome.figures.pop(name)  # its libraries may not have been in the page cache
        reference = reference or pictures[0]
        found, floor = psnr(pictures[0], reference), reduced_floor if case.own else psnr_floor
        outcome.facts[name]["psnr"] = None if math.isinf(found) else found
        if case.own in outcome.facts:
            own = [psnr(picture, folder / picture.name.replace(name, case.own, 1)) for picture in pictures]
            outcome.facts[name]["psnr own"] = [min(value, EQUAL) for value in own]
        if found < floor:
            outcome.drop(name, f"draws another picture: PSNR {found:.1f} dB, expected at least {floor:g} dB")

    def guarded(name: str, measure: Any) -> None:
        if name not in outcome.reasons:
            try:
                measure(name)
            except PeerError as error:
                outcome.drop(name, str(error))

    def cold(name: str) -> None:
        _cold_start(name, cases[name], jobs[:1], outcome)

    agreed = [name for name in cases if name not in outcome.reasons]
    if cold_starts:
        interleaved({name: lambda name=name: guarded(name, cold) for name in agreed}, cold_starts, warm_up=0)
    commands = {name: cases[name].command for name in agreed}
    loads = {name: cases[name].load for name in agreed}
    residents = Residents(commands, loads, megabytes, limit, warm_up={"steps": 1})
    taken: dict[str, list[float]] = {name: [] for name in agreed}

    def warm(name: str) -> None:
        taken[name].append(float(residents.ask(name, "draw", **jobs[0])["seconds"]))

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


def _cold_start(name: str, case: Case, jobs: Sequence[Mapping[str, Any]], outcome: Outcome) -> float:
    """Start a process, load, draw the first job twice and the others once; return the peak memory in megabytes."""
    start = time.perf_counter()
    with Worker(case.command) as worker:
        loaded = worker.ask("load", **case.load)
        first = worker.ask("draw", **jobs[0])
        until_first = time.perf_counter() - start
        second = worker.ask("draw", **{**jobs[0], "picture": None})
        memory = float(worker.ask("memory")["megabytes"])
        for job in jobs[1:]:
            worker.ask("draw", **job)
    outcome.add(name, "load", loaded["seconds"])
    outcome.add(name, "cold start, first picture", until_first)
    outcome.add(name, "cold start, second picture", second["seconds"])
    outcome.add(name, "peak memory", memory)
    outcome.facts[name] = {**outcome.facts.get(name, {}), **loaded["facts"], "unet_calls": first["unet_calls"]}
    return memory
