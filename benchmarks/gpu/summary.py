"""The summary of the GPU check: the jobs of a part joined, as JSON and as text.

Knows outcomes and reports, but neither processes nor what a part does.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from latentrt.runtime.files import written_whole

from .parts import Job
from .report import Report, finite
from .runner import VERDICTS, Outcome


def write_summary(outcomes: Sequence[Outcome], out: Path) -> str:
    """Replace summary.json and summary.txt in `out`; return the text: a line for each part, then all findings.

    A reader, also after a kill, sees a whole file.
    """
    parts = list(joined(outcomes))
    lines = [_line(part) for part in parts]
    for part in parts:
        lines += ["", f"== {part['part']}: {part['verdict']}", *_findings(part)]
    text = "\n".join(lines) + "\n"
    write(out / "summary.json", {"parts": parts})
    with written_whole(out / "summary.txt") as partial:
        partial.write_text(text, encoding="utf-8")
    return text


def write(file: Path, content: Any) -> None:
    """Replace a JSON file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(file) as partial:
        partial.write_text(json.dumps(finite(content), indent=1) + "\n", encoding="utf-8")


def joined(outcomes: Iterable[Outcome]) -> Iterator[dict[str, Any]]:
    """A record of each part: its worst verdict, all findings of its jobs, and how each of them ended."""
    jobs_of: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        jobs_of.setdefault(outcome.job.part, []).append(outcome)
    for part, ran in jobs_of.items():
        yield {
            "part": part,
            "verdict": min((outcome.verdict for outcome in ran), key=VERDICTS.index),
            "seconds": sum(outcome.seconds for outcome in ran),
            "jobs": [
                {
                    "backend": o.job.backend,
                    "verdict": o.verdict,
                    "seconds": o.seconds,
                    "status": o.status,
                    "last_line": o.last_line,
                }
                for o in ran
            ],
            "report": joined_report(ran),
        }


def joined_report(outcomes: Iterable[Outcome]) -> dict[str, Any] | None:
    """The findings of all jobs of a part; None if none has a report.

    Jobs may have different figures of the same name, as of what each measures beside its backend: from the second on,
    the name starts with the backend.
    """
    found: dict[str, Any] | None = None
    for outcome in outcomes:
        if (report := outcome.report) is None:
            continue
        if found is None:
            found = {"when": report.when, "finished": True, "checks": [], "figures": {}, "notes": []}
        figures: dict[str, Any] = found["figures"]
        for name, value in report.figures.items():
            taken = name in figures and figures[name] != value
            figures[f"{outcome.job.backend}: {name}" if taken else name] = value
        found["checks"] += report.checks
        found["notes"] += (note for note in report.notes if note not in found["notes"])
        found["finished"] &= report.finished
    return found


def passed(outcomes: Iterable[Outcome]) -> bool:
    """Whether all parts passed; one that was left out for every backend has not."""
    return all(part["verdict"] == "passed" for part in joined(outcomes))


def keep(file: Path, outcomes: Iterable[Outcome]) -> None:
    """Save outcomes for a later call."""
    records = []
    for outcome in outcomes:
        record = asdict(outcome)
        if outcome.report is not None:
            record["report"] = {**record["report"], "file": str(outcome.report.file)}
        records.append(record)
    write(file, records)


def kept(file: Path) -> list[Outcome]:
    """The outcomes that `keep` has saved; none if there is no such file."""
    if not file.is_file():
        return []
    return [_outcome(**record) for record in json.loads(file.read_text(encoding="utf-8"))]


def _outcome(job: Mapping[str, str], report: Mapping[str, Any] | None, **facts: Any) -> Outcome:
    read = None if report is None else Report(**{**report, "file": Path(report["file"])})
    return Outcome(Job(**job), report=read, **facts)


def _line(part: Mapping[str, Any]) -> str:
    checks = (part["report"] or {}).get("checks")
    counts = f"  {sum(check['passed'] for check in checks)} of {len(checks)} checks passed" if checks else ""
    each = ", ".join(f"{job['backend']} {job['verdict']}" for job in part["jobs"] if job["backend"])
    return f"{part['part']:12}  {part['verdict']:12}  {part['seconds']:6.1f} s{counts}" + (
        f"  ({each})" if each else ""
    )


def _findings(part: Mapping[str, Any]) -> Iterator[str]:
    for job in part["jobs"]:
        what = f"{job['backend']}: " if job["backend"] else ""
        if job["verdict"] == "crashed" or job["status"] not in (None, 0, 1):
            yield f"{what}process ended with status {job['status']}; last line of its log: {job['last_line']}"
        elif job["verdict"] == "left out" and job["status"] is None:
            yield f"{what}left out: {job['last_line']}"
    report = part["report"]
    if report is not None:
        for check in report["checks"]:
            yield f"{'passed' if check['passed'] else 'FAILED'}  {check['name']}: {check['text']}"
        timed = {n: f for n, f in report["figures"].items() if isinstance(f, dict) and "p50_ms" in f}
        for name, f in timed.items():
            times = f"p50 {f['p50_ms']:9.1f} ms  p90 {f['p90_ms']:9.1f} ms"
            yield f"{name:50} {times}  {f['p50_over_floor']:7.1f} times the floor"
        for name, value in report["figures"].items():
            yield f"{name}: {json.dumps(finite(value))}"
        for note in report["notes"]:
            yield f"note: {note}"
