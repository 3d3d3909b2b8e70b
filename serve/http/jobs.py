"""Native jobs: `POST /v1/jobs` and what follows. A job goes on when its client is gone, and may outlive the server.

A job of another client is as unknown as one that never was. What a body may say is for the parser that is passed in.
"""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Annotated, Any
from uuid import uuid4

from fastapi import APIRouter, Header, HTTPException, Path, Query, Request, Response
from fastapi.responses import StreamingResponse

from latentrt.runtime.request.metadata import BY_HASH
from latentrt.runtime.request.options import request_schema
from latentrt.serve.jobs.events import HEARTBEAT, LAST, Entry
from latentrt.serve.jobs.runner import Runner
from latentrt.serve.jobs.store import FullError, KeptJob, StorageError
from latentrt.serve.messages import Job, RefusedError

from .job_answers import BYTES, MEDIA_TYPES, PATH, JobAnswer, JobList, errors, job_answer, server_sent

# A JSON body and the client that sent it -> a checked job; raises what the app's handlers of errors know.
Parse = Callable[[Mapping[str, Any], str], Job]
RETRY_AFTER = 5  # seconds, while the store cannot be used

_UNKNOWN = "there is no such job"
_READ = {404: "this client has no such job", 503: "the store of jobs cannot be used now"}
_POST = {
    400: "the body is not JSON, or the model does not take the call",
    413: "the body is too large",
    429: "too much work waits",
    503: "the server starts or stops, or the store of jobs cannot be used now",
    507: "the server keeps as many jobs and results as it may",
}
JobId = Annotated[str, Path(max_length=64, description="as the job's answer has it")]


def jobs_router(
    runner: Runner,
    *,
    parse: Parse,
    client: Callable[[Request], str],
    clock: Callable[[], float] = time.time,
    heartbeat: float = HEARTBEAT,
) -> APIRouter:
    """The routes of native jobs.

    Args:
        parse: makes the job of a body, in a thread; the id that it gives is replaced.
        client: the name of whoever sent a request, as the check of keys has found it.
        clock: the store's.
        heartbeat: seconds between the comments that keep a stream of events open.
    """
    routes = _Routes(runner, parse, client, clock, heartbeat)
    router = APIRouter(prefix=PATH, tags=["jobs"])
    body = {"required": True, "content": {"application/json": {"schema": job_schema()}}}
    stream = {"description": "the events", "content": {"text/event-stream": {"schema": {"type": "string"}}}}
    picture = {"description": "the picture", "content": {kind: {} for kind in (*MEDIA_TYPES.values(), BYTES)}}
    router.post("", status_code=202, responses=errors(_POST), openapi_extra={"requestBody": body}, name="create_job")(
        routes.create
    )
    router.get("", responses=errors({503: _READ[503]}), name="list_jobs")(routes.list_jobs)
    router.get("/{job}", responses=errors(_READ), name="get_job")(routes.get)
    router.delete("/{job}", responses=errors(_READ), name="cancel_job")(routes.cancel)
    router.get(
        "/{job}/events",
        response_class=StreamingResponse,
        responses={200: stream, 204: {"description": "the last event has been read"}, **errors(_READ)},
        name="follow_job",
    )(routes.events)
    image_errors = {**_READ, 409: "the job has not ended", 410: "the time of its results is over"}
    router.get(
        "/{job}/images/{n}",
        response_class=Response,
        responses={200: picture, 304: {"description": "it has not changed"}, **errors(image_errors)},
        name="get_job_image",
    )(routes.image)
    return router


def job_schema() -> dict[str, Any]:
    """JSON schema of the body of a new job: a prompt, the options of the table, and how it is treated."""
    schema = request_schema()
    options = {name: value for name, value in schema["properties"].items() if name not in BY_HASH}
    base64_text = {"type": "string", "description": "base64, or a data URL"}
    one_or_more = {"anyOf": [base64_text, {"type": "array", "items": base64_text, "minItems": 1}]}
    given = {
        name: {"description": schema["properties"][name]["description"].partition(":")[0], **one_or_more}
        for name in BY_HASH
        if name in schema["properties"]
    }
    own = {
        "model": {"type": "string", "description": "Default: the first model of the server"},
        "loras": {"type": "object", "additionalProperties": {"type": "number"}, "description": "name -> weight"},
        "deadline_ms": {"type": "integer", "minimum": 1, "description": "it fails if it takes longer than this"},
        "priority": {"enum": ["interactive", "batch"], "default": "interactive"},
        "output_format": {"enum": ["png", "jpeg", "webp"], "default": "png"},
        "output_compression": {"type": "integer", "minimum": 0, "maximum": 100, "description": "of JPEG and WebP"},
        "previews": {
            "type": "integer",
            "minimum": 0,
            "description": "how many unfinished pictures of each image the events hold; 0: one after every call",
        },
    }
    return {
        "type": "object",
        "properties": {**own, **options, **given},
        "required": schema["required"],
        "additionalProperties": False,
    }


@contextmanager
def _storing() -> Iterator[None]:
    """What the store raises, as an answer."""
    try:
        yield
    except FullError as error:
        raise HTTPException(507, str(error)) from error
    except RefusedError as error:  # only for the number of a client's jobs
        raise HTTPException(429, error.message, {"Retry-After": f"{error.retry_after or RETRY_AFTER:.0f}"}) from error
    except StorageError as error:
        if error.full:
            raise HTTPException(507, str(error)) from error
        raise HTTPException(503, str(error), {"Retry-After": str(RETRY_AFTER)}) from error


class _Routes:
    """The routes; FastAPI reads their annotations."""

    def __init__(
        self,
        runner: Runner,
        parse: Parse,
        client: Callable[[Request], str],
        clock: Callable[[], float],
        heartbeat: float,
    ) -> None:
        self._runner, self._parse, self._client = runner, parse, client
        self._clock, self._heartbeat = clock, heartbeat

    async def create(self, request: Request, response: Response) -> JobAnswer:
        """Keep a job and answer at once: it is drawn also when the client is gone."""
        who = self._client(request)
        try:
            body = json.loads(await request.body())
        except (ValueError, RecursionError) as error:
            raise HTTPException(400, f"the body is not JSON: {str(error)[:200]}") from error
        if not isinstance(body, dict):
            raise HTTPException(400, "the body is not a JSON object")
        job = await asyncio.to_thread(self._parse, body, who)
        with _storing():
            kept = await self._runner.accept(replace(job, id=uuid4().hex, client=who))
            answer = await self._answer(request, kept)
        response.headers["Location"] = answer.urls.self
        return answer

    async def list_jobs(
        self,
        request: Request,
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
        after: Annotated[str | None, Query(max_length=64, description="the last job that is known")] = None,
    ) -> JobList:
        """The client's own jobs, newest first."""
        with _storing():
            jobs = await self._runner.store.of_client(self._client(request), limit=limit + 1, before=after)
            data = [await self._answer(request, job) for job in jobs[:limit]]
        return JobList(data=data, has_more=len(jobs) > limit, last_id=data[-1].id if data else None)

    async def get(self, request: Request, job: JobId) -> JobAnswer:
        """A job as it is now."""
        with _storing():
            return await self._answer(request, await self._find(request, job))

    async def cancel(self, request: Request, job: JobId) -> JobAnswer:
        """Cancel a job. One that has ended stays as it is."""
        with _storing():
            await self._find(request, job)
            kept = await self._runner.cancel(job)
            return await self._answer(request, self._found(request, kept))

    async def events(
        self, request: Request, job: JobId, last_event_id: Annotated[str | None, Header(max_length=64)] = None
    ) -> Response:
        """What happens to a job, as server-sent events: state, progress, preview, picture; done, failed or cancelled.

        With `Last-Event-ID`, those after it. Progress and previews that newer ones have replaced are left out.
        """
        with _storing():
            kept = await self._find(request, job)
        if last_event_id == LAST:
            return Response(status_code=204)  # tells browsers not to connect again
        stream = server_sent(self._follow(job, last_event_id), self._url(request, kept))
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(stream, media_type="text/event-stream", headers=headers)

    def _follow(self, job: str, last: str | None) -> AsyncGenerator[Entry | None, None]:
        return self._runner.logs.follow(job, self._runner.store.get, last=last, heartbeat=self._heartbeat)

    async def image(
        self,
        request: Request,
        job: JobId,
        n: Annotated[int, Path(ge=0, le=10_000)],
        if_none_match: Annotated[str | None, Header()] = None,
    ) -> Response:
        """A finished picture, as long as results are kept."""
        with _storing():
            kept = await self._find(request, job)
        if not kept.has_ended or kept.expires is None:
            raise HTTPException(409, "the job has not ended: follow its events")
        if kept.expires <= (now := self._clock()):
            raise HTTPException(410, "the time of this job's results is over")
        picture = next((picture for picture in kept.pictures if picture.image == n), None)
        if picture is None:
            raise HTTPException(404, f"the job has no picture {n}")
        headers = {"ETag": f'"{picture.sha256}"', "Cache-Control": f"private, max-age={int(kept.expires - now)}"}
        known = [tag.strip().removeprefix("W/") for tag in (if_none_match or "").split(",")]
        if headers["ETag"] in known or "*" in known:
            return Response(status_code=304, headers=headers)
        with _storing():
            data = await self._runner.store.picture(picture)
        if data is None:
            raise HTTPException(410, "the time of this job's results is over")
        return Response(data, media_type=MEDIA_TYPES.get(picture.format, BYTES), headers=headers)

    async def _find(self, request: Request, job: str) -> KeptJob:
        return self._found(request, await self._runner.store.get(job))

    def _found(self, request: Request, kept: KeptJob | None) -> KeptJob:
        if kept is None or kept.client != self._client(request):
            raise HTTPException(404, _UNKNOWN)
        return kept

    def _url(self, request: Request, job: KeptJob) -> str:
        return f"{request.scope.get('root_path', '')}{PATH}/{job.id}"

    async def _answer(self, request: Request, job: KeptJob) -> JobAnswer:
        outlook = await self._runner.outlook(job)
        started = self._runner.is_started(job)
        return job_answer(job, started=started, outlook=outlook, url=self._url(request, job), now=self._clock())
