"""The command behind `benchmarks/gpu_check.sh`.

    python -m benchmarks.gpu [PART ...] [--out FOLDER] [--work FOLDER] [--seconds 570]

Runs the quick parts if none is named, in the order in which they tell most. `--out` gets summary.json, summary.txt and
logs.txt. The exit status is 0 if all parts passed.
"""

import argparse
import importlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from .places import BACKENDS, Place
from .report import Report
from .runner import Outcome, run_parts, write_summary

# Part -> time limit in seconds. Parts that others need come first, slow parts last.
PARTS = {
    "device": 60,
    "ceilings": 60,
    "backends": 180,
    "states": 90,
    "pictures": 300,
    "waits": 60,
    "loras": 120,
    "noise": 90,
    "ideas": 90,
    "older": 90,
    "full_size": 540,
    "ort_options": 540,
    "latency": 540,
}

# Parts that also try backends which are left out elsewhere.
DARING = ("backends", "older")
LEFT_OUT = "left_out.json"  # in the folder of --work
QUICK = tuple(PARTS)[: list(PARTS).index("full_size")]


def main() -> int:
    """Run each part in a process of its own; with --here, run one part in this process."""
    parser = argparse.ArgumentParser("gpu_check", description="Checks and figures that need an NVIDIA GPU.")
    parser.add_argument(
        "parts", nargs="*", metavar="PART", help=f"default: {', '.join(QUICK)}; slow: {', '.join(PARTS.keys() - QUICK)}"
    )
    parser.add_argument("--out", type=Path, default=Path("out/gpu_check"), help="results; default: out/gpu_check")
    parser.add_argument(
        "--work", type=Path, default=Path("build/gpu_check"), help="kept between calls; default: build/gpu_check"
    )
    parser.add_argument("--seconds", type=float, default=570, help="for all parts together; default: 570")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="default: cuda; cpu is for a try")
    parser.add_argument("--backend", action="append", choices=BACKENDS, help="repeatable; default: all")
    parser.add_argument("--batch", type=int, action="append", help="of the part latency; repeatable; default: 1, 4")
    parser.add_argument("--no-compile", action="store_true", help="in the part latency, leave out compiled diffusers")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    for part in arguments.parts:
        if part not in PARTS:
            parser.error(f"unknown part {part!r}: choose from {', '.join(PARTS)}")
    backends = arguments.backend or list(BACKENDS)
    if arguments.here:
        place = Place(arguments.work, device=arguments.device, backends=backends)
        of_latency = {"batches": arguments.batch or (1, 4), "compiles": not arguments.no_compile}
        return run_here(arguments.parts[0], place, of_latency if arguments.parts == ["latency"] else {})
    options = ["--work", str(arguments.work), "--device", arguments.device]
    options += [word for batch in arguments.batch or () for word in ("--batch", str(batch))]
    options += ["--no-compile"] * arguments.no_compile
    outcomes: list[Outcome] = []
    text = ""
    to_run = commands(arguments.parts or QUICK, backends, options, outcomes, arguments.work)
    for outcome in run_parts(to_run, arguments.seconds, arguments.work):
        outcomes.append(outcome)
        print(f"{outcome.part}: {outcome.verdict}, {outcome.seconds:.1f} s", flush=True)
        text = write_summary(outcomes, arguments.out)  # after each part, in case this process is killed
    logs = (arguments.work / "reports" / f"{outcome.part}.log" for outcome in outcomes)
    with (arguments.out / "logs.txt").open("w", encoding="utf-8") as file:
        for log in logs:
            if log.is_file():
                file.write(f"== {log.stem}\n{log.read_text(encoding='utf-8', errors='replace')}\n")
    print("\n" + text)
    return int(not all(outcome.passed for outcome in outcomes))


def commands(
    parts: Sequence[str], backends: Sequence[str], options: Sequence[str], outcomes: Sequence[Outcome], work: Path
) -> Iterator[tuple[str, list[str], float]]:
    """Part, command and time limit of each part.

    A backend that ended the process of the part `backends` is left out from then on, also by later calls, until that
    part is run again. The part runs a second time for the backends behind it.
    """
    for part in parts:
        left = list(backends)
        if part == "backends":
            write_left_out(work, {name: why for name, why in left_out(work).items() if name not in left})
        while left:
            chosen = [word for backend in left for word in ("--backend", backend)]
            command = [sys.executable, "-u", "-m", "benchmarks.gpu", part, "--here", *options, *chosen]
            yield part, command, PARTS[part]
            report = outcomes[-1].report
            lost = report.figures.get("trying") if report is not None and not report.finished else None
            if part != "backends" or lost not in left:
                break
            why = f"the part backends {outcomes[-1].verdict} while it tried this backend"
            print(f"{lost} is left out: {why}", flush=True)
            write_left_out(work, left_out(work) | {lost: why})
            left = left[left.index(lost) + 1 :]


def left_out(work: Path) -> dict[str, str]:
    """The backends that parts leave out, with the reasons."""
    file = work / LEFT_OUT
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}


def write_left_out(work: Path, reasons: Mapping[str, str]) -> None:
    """Replace the list of `left_out`."""
    work.mkdir(parents=True, exist_ok=True)
    (work / LEFT_OUT).write_text(json.dumps(reasons), encoding="utf-8")


def run_here(part: str, place: Place, options: Mapping[str, Any]) -> int:
    """Run one part in this process, with options of its own."""
    report = Report(place.work / "reports" / f"{part}.json")
    report.save()
    if part not in DARING:
        reasons = left_out(place.work)
        for backend in filter(reasons.__contains__, place.backends):
            report.note(f"{backend} is left out: {reasons[backend]}")
        place = replace(place, backends=[backend for backend in place.backends if backend not in reasons])
    importlib.import_module(f"benchmarks.gpu.{part}").run(place, report, **options)
    report.finish()
    return int(not report.passed)


if __name__ == "__main__":
    sys.exit(main())
