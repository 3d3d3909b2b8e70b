"""Rows of the table of jobs as records, and records as rows hold them: the same columns in every database."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from .store import Failure, KeptJob, KeptPicture

PRIORITIES = ("interactive", "batch")  # the first are claimed first


def job_of(row: Mapping[str, Any]) -> KeptJob:
    """A row as a record."""
    values = {name: row[name] for name in KeptJob.__slots__}
    failure = row["failure"]
    return KeptJob(
        **{
            **values,
            "priority": PRIORITIES[row["priority"]],
            "alone": bool(row["alone"]),
            "failure": None if failure is None else Failure(**json.loads(failure)),
            "pictures": tuple(KeptPicture(**picture) for picture in json.loads(row["pictures"])),
            "timings": json.loads(row["timings"]),
        }
    )


def failure_text(failure: Failure | None) -> str | None:
    """A failure as a row holds it. JSON escapes what is not ASCII, and so also what is not valid Unicode."""
    return None if failure is None else json.dumps(asdict(failure))


def pictures_text(pictures: Sequence[KeptPicture]) -> str:
    """Pictures as a row holds them."""
    return json.dumps([asdict(picture) for picture in pictures])


def timings_text(timings: Mapping[str, float] | None) -> str:
    """Timings as a row holds them."""
    return json.dumps(dict(timings or {}))
