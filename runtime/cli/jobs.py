"""Runs jobs, one JSON object per line, on one pipeline. Failed jobs are reported at the end and do not stop others.

Knows lines and what is told of them; knows nothing about flags.
"""

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentrt.runtime.errors import InputError
from latentrt.runtime.jobs import NO_JOBS, LocalFiles, Outcome, draw_job, jobs_of_lines, report_lines

if TYPE_CHECKING:
    from latentrt.runtime.pipeline import Pipeline


def run_jobs(pipe: "Pipeline", lines: Iterable[bytes], defaults: Mapping[str, Any], out: Path) -> int:
    """Run the job of every non-empty line, in order; returns 1 if any failed, else 0.

    Args:
        defaults: options that jobs may override.
        out: pattern for jobs without "out": pictures/cat.png becomes pictures/cat-0007.png for line 7.

    A job never overwrites a file of another job. Files are printed when written, failures at the end.
    """
    from tqdm import tqdm

    written: dict[str, int] = {}
    failures: dict[int, str] = {}
    count, place = 0, LocalFiles()
    try:
        for number, job in jobs_of_lines(tqdm(lines, disable=None, unit="job")):
            count += 1
            if isinstance(job, str):
                failures[number] = job
                continue
            outcome = draw_job(pipe, job, defaults, out, place, written)
            tell(outcome)
            if outcome.why is not None:
                failures[number] = outcome.why
    finally:
        for line in report_lines(failures, count):
            print(line, file=sys.stderr)
    if not count:
        raise InputError(NO_JOBS)
    return 1 if failures else 0


def tell(outcome: Outcome) -> None:
    """Print the files of a job, above the progress bar."""
    from tqdm import tqdm

    for line in outcome.lines():
        tqdm.write(line)
    sys.stdout.flush()  # for readers of a pipe
