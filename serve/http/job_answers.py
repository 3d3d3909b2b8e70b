"""What the routes of native jobs answer: the fields of a job in JSON, and its events as server-sent events."""

import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import asdict
from typing import Any

from pydantic import BaseModel, Field

from latentrt.serve.jobs.events import Entry
from latentrt.serve.jobs.outlook import Outlook
from latentrt.serve.jobs.resolved import shown_request
from latentrt.serve.jobs.store import KeptJob, State

from .given_files import base64_text

BYTES = "application/octet-stream"
PATH = "/v1/jobs"


class JobPicture(BaseModel):
    """A finished picture."""

    index: int = Field(description="which of the job's images it is, from 0")
    seed: int
    width: int
    height: int
    format: str = Field(description="png, jpeg or webp; raw: (height, width, 3) uint8; latents: (C, h, w) float32")
    bytes: int
    url: str


class JobError(BaseModel):
    """Why a job ended without all of its pictures."""

    kind: str
    message: str
    image: int | None = Field(description="which image it is about, where it is about one")


class JobUrls(BaseModel):
    """Where the rest of a job is found."""

    self: str
    events: str = Field(description="what happens to it, as server-sent events")


class JobAnswer(BaseModel):
    """A job. Times are seconds since 1970."""

    id: str
    object: str = "job"
    model: str
    status: State
    position: int | None = Field(description="images that are drawn before its first; null where that is not known")
    eta_s: float | None = Field(description="seconds until it has finished; null where that is not known")
    created: float
    started: float | None
    ended: float | None
    expires: float | None = Field(description="when its pictures are removed; null until it has ended")
    expired: bool
    deadline: float | None
    attempts: int = Field(description="how often it was begun; above 1, the process that drew it had died")
    images: list[JobPicture]
    error: JobError | None
    timings: dict[str, float] = Field(description="milliseconds by stage")
    request: dict[str, Any] | None = Field(description="prompt and options with all defaults; null once it has expired")
    urls: JobUrls


class JobList(BaseModel):
    """Jobs, newest first."""

    object: str = "list"
    data: list[JobAnswer]
    has_more: bool = Field(description="whether there are older ones: ask with after=last_id")
    last_id: str | None


def job_answer(job: KeptJob, *, started: bool, outlook: Outlook, url: str, now: float) -> JobAnswer:
    """A job as JSON. `url`: where it is found."""
    failure = job.failure
    expired = job.expires is not None and job.expires <= now
    pictures = [
        JobPicture(
            index=picture.image,
            seed=picture.seed,
            width=picture.width,
            height=picture.height,
            format=picture.format,
            bytes=picture.size,
            url=f"{url}/images/{picture.image}",
        )
        for picture in job.pictures
    ]
    return JobAnswer(
        id=job.id,
        model=job.model,
        status="waiting" if job.state == "running" and not started else job.state,
        position=outlook.position,
        eta_s=outlook.seconds,
        created=job.created,
        started=job.started,
        ended=job.ended,
        expires=job.expires,
        expired=expired,
        deadline=job.deadline,
        attempts=job.attempts,
        images=[] if expired else pictures,
        error=None if failure is None else JobError(**asdict(failure)),
        timings=dict(job.timings),
        request=shown_request(job.document),
        urls=JobUrls(self=url, events=f"{url}/events"),
    )


async def server_sent(entries: AsyncGenerator[Entry | None, None], url: str) -> AsyncIterator[str]:
    """Events of a job in the form of server-sent events; a comment is the heartbeat. `url`: of the job."""
    yield "retry: 2000\n\n"
    async with aclosing(entries) as following:
        async for entry in following:
            yield ": nothing has happened\n\n" if entry is None else _server_sent(entry, url)


def _server_sent(entry: Entry, url: str) -> str:
    data = {name: _text(value) for name, value in entry.data.items()}
    if entry.name == "picture":
        data["url"] = f"{url}/images/{data['image']}"
    return f"id: {entry.id}\nevent: {entry.name}\ndata: {json.dumps(data)}\n\n"


def _text(value: Any) -> Any:
    return base64_text(value) if isinstance(value, bytes) else value
