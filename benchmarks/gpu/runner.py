"""Run parts of the GPU check one after the other, each in a process of its own with a time limit.

Knows processes and reports, but not what a part does.
"""

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from .report import Report, finite

GRACE = 10.0  # seconds between SIGTERM and SIGKILL


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a part ended.

    Attributes:
        verdict: "passed", "failed", "crashed", "ran too long" or "no time left".
        status: of the part's process, which can also crash after the part has finished.
    """

    part: str
    verdict: str
    seconds: float
    status: int | None = None
    last_line: str = ""
    report: Report | None = None

    @property
    def passed(self) -> bool:
        """Whether the part ran to its end and no check failed."""
        return self.verdict == "passed"


def run_part(part: str, command: Sequence[str], seconds: float, work: Path) -> Outcome:
    """Run one part, which saves its report as `work/reports/PART.json`; its output goes to PART.log beside it."""
    file, log = work / "reports" / f"{part}.json", work / "reports" / f"{part}.log"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.unlink(missing_ok=True)
    start = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        in_time = _ends_within(process, seconds)
    report = Report.read(file) if file.is_file() else None
    if report is not None and report.finished:
        verdict = "passed" if report.passed else "failed"
    else:
        verdict = "crashed" if in_time else "ran too long"
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    last_line = lines[-1] if lines else ""
    return Outcome(part, verdict, time.monotonic() - start, process.returncode, last_line, report)


def _ends_within(process: "subprocess.Popen[bytes]", seconds: float) -> bool:
    """Wait for a process, and kill it with its children after `seconds`; return whether it ended by itself."""
    try:
        process.wait(seconds)
        return True
    except subprocess.TimeoutExpired:
        pass
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    os.killpg(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(GRACE)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # also children that are still running
    process.wait()
    return False


def run_parts(commands: Iterable[tuple[str, Sequence[str], float]], seconds: float, work: Path) -> Iterator[Outcome]:
    """Run (part, command, limit) in order, within `seconds` in total; parts that remain get "no time left"."""
    end = time.monotonic() + seconds
    for part, command, limit in commands:
        left = end - time.monotonic() - GRACE
        if left < min(limit, 5.0):
            yield Outcome(part, "no time left", 0.0)
        else:
            yield run_part(part, command, min(limit, left), work)


def write_summary(outcomes: Sequence[Outcome], out: Path) -> str:
    """Write summary.json and summary.txt; return the text: one line per part, then all findings."""
    out.mkdir(parents=True, exist_ok=True)
    parts = [
        {**asdict(outcome), "report": None if outcome.report is None else _content(outcome.report)}
        for outcome in outcomes
    ]
    (out / "summary.json").write_text(json.dumps(finite({"parts": parts}), indent=1) + "\n", encoding="utf-8")
    lines = [f"{o.part:10}  {o.verdict:12}  {o.seconds:6.1f} s" + _counts(o.report) for o in outcomes]
    for outcome in outcomes:
        lines += ["", f"== {outcome.part}: {outcome.verdict}", *_findings(outcome)]
    text = "\n".join(lines) + "\n"
    (out / "summary.txt").write_text(text, encoding="utf-8")
    return text


def _content(report: Report) -> dict[str, object]:
    return {name: value for name, value in asdict(report).items() if name != "file"}


def _counts(report: Report | None) -> str:
    if report is None or not report.checks:
        return ""
    return f"  {sum(check['passed'] for check in report.checks)} of {len(report.checks)} checks passed"


def _findings(outcome: Outcome) -> Iterator[str]:
    if outcome.verdict == "crashed" or outcome.status not in (None, 0, 1):
        yield f"process ended with status {outcome.status}; last line of its log: {outcome.last_line}"
    if outcome.report is not None:
        for check in outcome.report.checks:
            yield f"{'passed' if check['passed'] else 'FAILED'}  {check['name']}: {check['text']}"
        timed = {n: f for n, f in outcome.report.figures.items() if isinstance(f, dict) and "p50_ms" in f}
        for name, f in timed.items():
            times = f"p50 {f['p50_ms']:9.1f} ms  p90 {f['p90_ms']:9.1f} ms"
            yield f"{name:50} {times}  {f['p50_over_floor']:7.1f} times the floor"
        for name, value in outcome.report.figures.items():
            yield f"{name}: {json.dumps(finite(value))}"
        for note in outcome.report.notes:
            yield f"note: {note}"
