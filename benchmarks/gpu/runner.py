"""Run jobs of the GPU check one after the other, each in a process of its own, within a budget of seconds.

Knows processes, reports and budgets, but not what a part does.
"""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .parts import PARTS, Job
from .report import Report

GRACE = 10.0  # seconds between SIGTERM and SIGKILL


class Stopped(BaseException):
    """The check itself was told to end."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a job ended.

    Attributes:
        verdict: one of `VERDICTS`.
        status: of the job's process, which can also crash after the part has finished.
        last_line: of its log; for a job that was left out, the reason.
    """

    job: Job
    verdict: str
    seconds: float = 0.0
    status: int | None = None
    last_line: str = ""
    report: Report | None = None


# From the worst to the best; a part with several jobs has the worst of theirs.
VERDICTS = (
    *("crashed", "ran too long", "stopped", "failed"),  # something was found, or the process was ended
    *("running", "no time left", "not started"),
    *("passed", "left out"),  # left out: its backend does not run here, and the reason is known
)


def run_jobs(
    jobs: Iterable[Job],
    command: Callable[[Job], Sequence[str]],
    *,
    until: float,
    reports: Path,
    left_out: dict[str, str],
) -> Iterator[Outcome]:
    """Run the jobs in order; yield the outcome "running" and then the final one of each.

    Args:
        jobs: what to run.
        command: the command of a job, which saves its report as `reports/NAME.json`.
        until: the value of `time.monotonic()` at which all must have ended. A job that would not fit is not started.
        reports: folder of reports and logs.
        left_out: backends that do not run here, with the reasons; the part `backends` adds and removes its own.

    Raises `Stopped`, after the outcome of the running job, if that is raised meanwhile.
    """
    for job in jobs:
        part = PARTS[job.part]
        left = until - time.monotonic() - GRACE
        if job.backend in left_out and not part.daring:
            yield Outcome(job, "left out", last_line=left_out[job.backend])
        elif left < part.needs:
            yield Outcome(job, "no time left")
        else:
            yield Outcome(job, "running")
            limit = min(part.limit, left)
            outcome = run_job(job, [*command(job), "--seconds", f"{limit:.0f}"], limit, reports)
            if job.part == "backends":
                left_out.pop(job.backend, None)
                if outcome.verdict not in ("passed", "failed"):
                    left_out[job.backend] = why_left_out(outcome)
            yield outcome
            if outcome.verdict == "stopped":
                raise Stopped


def why_left_out(outcome: Outcome) -> str:
    """Why later parts need not try the backend of a job of the part `backends`."""
    if outcome.verdict == "left out" and outcome.report is not None:
        return outcome.report.notes[-1]
    return f"the part backends {outcome.verdict} with it"


def run_job(job: Job, command: Sequence[str], seconds: float, reports: Path) -> Outcome:
    """Run one job with a time limit; its output goes to NAME.log beside its report."""
    file, log = reports / f"{job.name}.json", reports / f"{job.name}.log"
    reports.mkdir(parents=True, exist_ok=True)
    file.unlink(missing_ok=True)
    start = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        ending = _ended(process, seconds)
    report = Report.read(file) if file.is_file() else None
    verdict = ending if report is None or not report.finished else report.verdict
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    last_line = lines[-1] if lines else ""
    return Outcome(job, verdict, time.monotonic() - start, process.returncode, last_line, report)


def _ended(process: "subprocess.Popen[bytes]", seconds: float) -> str:
    """Wait for a process, and kill it with its children after `seconds`; return the verdict if it has not finished."""
    try:
        process.wait(seconds)
        return "crashed"
    except subprocess.TimeoutExpired:
        verdict = "ran too long"
    except Stopped:
        verdict = "stopped"
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    os.killpg(process.pid, signal.SIGTERM)
    # Whoever stops the check will not wait long.
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(GRACE if verdict == "ran too long" else GRACE / 10)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # also children that are still running
    process.wait()
    return verdict
