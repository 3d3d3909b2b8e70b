"""The command behind `benchmarks/gpu_check.sh`.

    python -m benchmarks.gpu [PART ...] [--half-hour 1|2|3] [--list] [--out FOLDER] [--work FOLDER] [--seconds 570]

Runs the quick parts if none is named, in the order in which they tell most. `--out` gets summary.json and summary.txt,
replaced after each process, and the reports and logs of each in `reports`. The exit status is 0 if all parts passed.
"""

import argparse
import importlib
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from latentrt.runtime.in_place import end_with_parent

from .parts import HALF_HOUR, PARTS, QUICK, Job, jobs_of
from .places import BACKENDS, Place
from .report import Report
from .runner import Outcome, Stopped, run_jobs
from .summary import keep, kept, passed, write, write_summary

LEFT_OUT = "left_out.json"  # in the folder of --work: backends that later parts leave out, with the reasons
KEPT = "half_hour.json"  # there, too: the outcomes of the calls before
SPARE = 30.0  # seconds before its limit at which a part begins nothing new
MOST = 570.0  # seconds by default: just below ten minutes


def main() -> int:
    """Run each job in a process of its own; with --here, run one part in this process."""
    began = time.monotonic()
    arguments = _arguments()
    if arguments.here is not None:
        end_with_parent(arguments.here)
        return run_here(arguments)
    jobs, seconds = _jobs(arguments)
    if arguments.list:
        print("\n".join(_listed(jobs, seconds)))
        return 0
    earlier = kept(arguments.work / KEPT) if (arguments.half_hour or 1) > 1 else []
    outcomes = {outcome.job: outcome for outcome in (*earlier, *(Outcome(job, "not started") for job in jobs))}
    try:
        signal.signal(signal.SIGTERM, _stop)
        signal.signal(signal.SIGINT, _stop)
        _run(arguments, jobs, began + seconds - arguments.spent, outcomes)
    except Stopped:
        print("stopped", flush=True)
    finally:
        text = write_summary(list(outcomes.values()), arguments.out)
    print("\n" + text)
    return int(not passed(outcomes[job] for job in jobs))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser("gpu_check", description="Checks and figures that need an NVIDIA GPU.")
    slow = [name for name in PARTS if name not in QUICK]
    parser.add_argument(
        "parts", nargs="*", metavar="PART", help=f"default: {', '.join(QUICK)}; slow: {', '.join(slow)}"
    )
    parser.add_argument(
        "--half-hour",
        type=int,
        choices=range(1, len(HALF_HOUR) + 1),
        help="one of the calls that together fit half an hour with a GPU; continues the summary of those before",
    )
    parser.add_argument("--list", action="store_true", help="only print what would run, in which order and how long")
    parser.add_argument("--out", type=Path, default=Path("out/gpu_check"), help="results; default: out/gpu_check")
    parser.add_argument(
        "--work", type=Path, default=Path("build/gpu_check"), help="kept between calls; default: build/gpu_check"
    )
    parser.add_argument("--graphs", type=Path, default=Path("build/gpu_graphs"), help="default: build/gpu_graphs")
    parser.add_argument("--seconds", type=float, help=f"for everything; default: {MOST:g}, or those of the call")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="default: cuda; cpu is for a try")
    parser.add_argument("--backend", action="append", choices=BACKENDS, help="repeatable; default: all")
    parser.add_argument("--batch", type=int, action="append", help="of the part latency; repeatable; default: 1, 4")
    parser.add_argument("--no-compile", action="store_true", help="in the part latency, leave out compiled diffusers")
    parser.add_argument("--spent", type=float, default=0, help=argparse.SUPPRESS)  # seconds before this process
    parser.add_argument("--here", type=int, metavar="PARENT", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    for part in arguments.parts:
        if part not in PARTS:
            parser.error(f"unknown part {part!r}: choose from {', '.join(PARTS)}")
    if arguments.parts and arguments.half_hour:
        parser.error(f"--half-hour {arguments.half_hour} has parts of its own: leave out {' '.join(arguments.parts)}")
    return arguments


def _jobs(arguments: argparse.Namespace) -> tuple[list[Job], float]:
    """What to run, and the seconds for it."""
    backends = arguments.backend or BACKENDS
    if arguments.half_hour:
        call = HALF_HOUR[arguments.half_hour - 1]
        jobs, seconds = [job for job in call.jobs if job.backend in ("", *backends)], call.seconds
    else:
        jobs, seconds = list(jobs_of(arguments.parts or QUICK, backends)), MOST
    return jobs, arguments.seconds or seconds


def _listed(jobs: Sequence[Job], seconds: float) -> list[str]:
    head = f"{'process':26}  {'at least':>8}  {'at most':>8}"
    rows = (f"{job.name:26}  {PARTS[job.part].needs:6.0f} s  {PARTS[job.part].limit:6.0f} s" for job in jobs)
    return [head, *rows, f"all within {seconds:.0f} s, installation included"]


def _run(arguments: argparse.Namespace, jobs: Sequence[Job], until: float, outcomes: dict[Job, Outcome]) -> None:
    """Run the jobs, and keep `outcomes` and the files of it up to date."""
    out, work = arguments.out, arguments.work
    first = next((job for job in jobs if job.part == "latency"), None)
    left_out = _read_left_out(work)
    # An outcome "running" or "not started" is written, too, so that the files also tell what a kill has cut off.
    for outcome in run_jobs(
        jobs,
        lambda job: command(job, arguments, compiles=job == first),
        until=until,
        reports=out / "reports",
        left_out=left_out,
    ):
        outcomes[outcome.job] = outcome
        write_summary(list(outcomes.values()), out)
        if outcome.verdict == "running":
            continue
        print(f"{outcome.job.name}: {outcome.verdict}, {outcome.seconds:.1f} s", flush=True)
        write(work / LEFT_OUT, left_out)
        if arguments.half_hour:
            keep(work / KEPT, outcomes.values())


def command(job: Job, arguments: argparse.Namespace, *, compiles: bool) -> list[str]:
    """The command of a job. Diffusers is compiled, which takes minutes, for the first job of the part latency only."""
    words = [sys.executable, "-u", "-m", "benchmarks.gpu", job.part, "--here", str(os.getpid())]
    for name in ("out", "work", "graphs", "device"):
        words += [f"--{name}", str(getattr(arguments, name))]
    words += ["--backend", job.backend] * bool(job.backend)
    if job.part == "latency":
        half_hour = arguments.half_hour is not None
        words += [word for b in arguments.batch or ([1] if half_hour else []) for word in ("--batch", str(b))]
        words += ["--no-compile"] * (arguments.no_compile or half_hour or not compiles)
    return words


def _read_left_out(work: Path) -> dict[str, str]:
    file = work / LEFT_OUT
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}


def _stop(*_: Any) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # the results are being written
    raise Stopped


def run_here(arguments: argparse.Namespace) -> int:
    """Run one part in this process."""
    (part,), backends = arguments.parts, arguments.backend or []
    report = Report(arguments.out / "reports" / f"{Job(part, *backends).name}.json")
    report.save()
    place = Place(arguments.work, device=arguments.device, backends=backends, graphs=arguments.graphs)
    options: dict[str, Any] = {}
    if part == "latency":
        options = {"batches": arguments.batch or (1, 4), "compiles": not arguments.no_compile}
    elif part == "ort_options":
        options = {"seconds": arguments.seconds - SPARE}
    importlib.import_module(f"benchmarks.gpu.{part}").run(place, report, **options)
    report.finish()
    return int(not report.passed)


if __name__ == "__main__":
    sys.exit(main())
