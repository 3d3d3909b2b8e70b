"""What tests of stores share: a clock, jobs and pictures."""

import hashlib
from dataclasses import replace
from typing import Any

from latentrt.serve.jobs.store import NewJob
from latentrt.serve.messages import Picture

TTL = 100.0


class Clock:
    """A clock that a test moves."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def new_job(name: str, **changes: Any) -> NewJob:
    return replace(NewJob(name, "me", "sd", '{"a": 1}', 1, 1000), **changes)


def picture(job: str, image: int = 0, data: bytes = b"png") -> Picture:
    return Picture(job, image, 7, 8, 8, data, "png")
