"""`latentrt generate --jobs FILE --ray`: the flags' values to files, lines on stdout and a report."""

import sys
from collections.abc import Mapping
from typing import Any

from latentrt.runtime.jobs import jobs_of_lines, lines_of_source, report_lines

from .draw import outcomes
from .model import Model


def run(
    source: str,
    out: str,
    defaults: Mapping[str, Any],
    *,
    model: Mapping[str, Any],
    address: str | None,
    actors: int | None,
    batch: int,
) -> int:
    """Draw the jobs of a file; returns 1 if any failed, else 0. `model`: fields of `Model`."""
    from tqdm import tqdm

    jobs = list(jobs_of_lines(lines_of_source(source)))
    failures: dict[int, str] = {}
    drawn = outcomes(jobs, out, model=Model(**model), defaults=defaults, address=address, actors=actors, batch=batch)
    try:
        for outcome in tqdm(drawn, total=len(jobs), disable=None, unit="job"):
            for line in outcome.lines():
                tqdm.write(line)
            sys.stdout.flush()  # for readers of a pipe
            if outcome.why is not None:
                failures[outcome.number] = outcome.why
    finally:
        drawn.close()
        for line in report_lines(failures, len(jobs)):
            print(line, file=sys.stderr)
    return 1 if failures else 0
