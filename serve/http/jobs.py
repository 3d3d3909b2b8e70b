"""Native jobs: `POST /v1/jobs` and what follows. A job goes on when its client is gone, and may outlive the server.

A job of another client is as unknown as one that never was.
"""

import hashlib
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Query, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from latentrt.runtime.errors import InputError
from latentrt.runtime.limits import MAX_STEPS
from latentrt.runtime.request.options import request_schema
from latentrt.serve.jobs.events import HEARTBEAT, LAST, Entry
from latentrt.serve.jobs.runner import Runner
from latentrt.serve.jobs.store import FullError, IdempotencyKey, KeptJob, ReusedKeyError, StorageError
from latentrt.serve.messages import Job, Previews, RefusedError

from .bodies import MEDIA_TYPES, CallReader, call_properties
from .config import IDEMPOTENCY_SECONDS
from .errors import EVERYWHERE, OF_WORK, ApiError, errors
from .following import STREAM_HEADERS
from .idempotency import Idempotency, key_reused
from .job_answers import BYTES, PATH, JobAnswer, JobList, job_answer, server_sent
from .keys import Key

RETRY_AFTER = 5  # seconds, while the store cannot be used

_EXPIRED = "the time of this job's results is over"
_READ = {**EVERYWHERE, 404: "this client has no such job", 503: "the store of jobs cannot be used now"}
_POST = {
    **EVERYWHERE,
    **{status: text for status, text in OF_WORK.items() if status != 504},
    503: "the server stops, or the store of jobs cannot be used now",
    507: "the server keeps as many jobs and results as it may",
}
JobId = Annotated[str, Path(max_length=64, description="as the job's answer has it")]


def jobs_router(
    runner: Runner,
    *,
    reader: CallReader,
    sender: Callable[[Request], Key],
    clock: Callable[[], float] = time.time,
    heartbeat: float = HEARTBEAT,
    idempotency: Idempotency | None = None,
    stopping: Callable[[], bool] = lambda: False,
) -> APIRouter:
    """The routes of native jobs.

    Args:
        sender: who sends a request.
        stopping: whether new jobs are refused, as the server is about to end.
        clock: the store's.
        heartbeat: seconds between the comments that keep a stream of events open.
    """
    routes = _Routes(
        runner, reader, sender, clock, heartbeat, idempotency or Idempotency(IDEMPOTENCY_SECONDS), stopping
    )
    router = APIRouter(prefix=PATH, tags=["jobs"])
    body = {"required": True, "content": {"application/json": {"schema": job_schema()}}}
    stream = {"description": "the events", "content": {"text/event-stream": {"schema": {"type": "string"}}}}
    picture = {"description": "the picture", "content": {kind: {} for kind in (*MEDIA_TYPES.values(), BYTES)}}
    router.post(
        "",
        status_code=202,
        response_model=JobAnswer,
        responses=errors(_POST),
        openapi_extra={"requestBody": body},
        name="create_job",
    )(routes.create)
    router.get("", responses=errors(_READ), name="list_jobs")(routes.list_jobs)
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
    one_or_more = request_schema()["properties"]["prompt"]
    previews = {
        "type": "integer",
        "minimum": 0,
        "maximum": MAX_STEPS,
        "description": "how many unfinished pictures of each image the events hold; 0: one after every call",
    }
    return {
        "type": "object",
        "properties": {"prompt": one_or_more, **call_properties(), "previews": previews},
        "required": ["prompt"],
        "additionalProperties": False,
    }


@contextmanager
def _storing() -> Iterator[None]:
    """What the store raises, as an answer."""
    try:
        yield
    except ReusedKeyError as error:
        raise key_reused() from error
    except FullError as error:
        raise ApiError(507, str(error), "store_full") from error
    except StorageError as error:
        if error.full:
            raise ApiError(507, str(error), "store_full") from error
        raise ApiError(503, str(error), "store_unavailable", retry_after=RETRY_AFTER) from error


class _Routes:
    """The routes; FastAPI reads their annotations."""

    def __init__(
        self,
        runner: Runner,
        reader: CallReader,
        sender: Callable[[Request], Key],
        clock: Callable[[], float],
        heartbeat: float,
        idempotency: Idempotency,
        stopping: Callable[[], bool],
    ) -> None:
        self._stopping = stopping
        self._idempotency = idempotency
        self._runner, self._reader, self._sender = runner, reader, sender
        self._clock, self._heartbeat = clock, heartbeat

    async def create(
        self,
        request: Request,
        idempotency_key: Annotated[str | None, Header(max_length=256, description="one job for one key")] = None,
    ) -> Response:
        """Keep a job and answer at once: it is drawn also when the client is gone."""
        if idempotency_key is None:
            return await self._created(request, None)
        digest = hashlib.sha256(await request.body())
        known = IdempotencyKey(idempotency_key, digest.hexdigest(), self._idempotency.seconds)
        name, made = self._sender(request).name, f"job {idempotency_key}"
        return await self._idempotency.answer(name, made, digest.digest(), lambda: self._created(request, known))

    async def _created(self, request: Request, known: IdempotencyKey | None) -> Response:
        if self._stopping():
            raise RefusedError("stopping", "the server stops: ask again", RETRY_AFTER)
        key = self._sender(request)
        job = await self._reader.read(request, lambda body: self._job(body, key))
        with _storing():
            kept = await self._runner.accept(job, known)
            answer = await self._answer(request, kept)
        return JSONResponse(answer.model_dump(), 202, {"Location": answer.urls.self})

    def _job(self, body: dict[str, Any], key: Key) -> Job:
        """The job of a body. Raises `InputError`, `ApiError`."""
        previews = None
        if (count := body.pop("previews", None)) is not None:
            if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count <= MAX_STEPS:
                raise InputError(f"previews={str(count)[:40]}: expected an integer from 0 to {MAX_STEPS}")
            previews = Previews("auto", count)
        if body.get("prompt") is None:
            raise ApiError(400, "prompt: expected a text, or a list of texts", "invalid_request", param="prompt")
        return self._reader.job(body, key, previews=previews)

    async def list_jobs(
        self,
        request: Request,
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
        after: Annotated[str | None, Query(max_length=64, description="the last job that is known")] = None,
    ) -> JobList:
        """The client's own jobs, newest first."""
        with _storing():
            jobs = await self._runner.store.of_client(self._sender(request).name, limit=limit + 1, before=after)
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
        return StreamingResponse(stream, media_type="text/event-stream", headers=STREAM_HEADERS)

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
            raise ApiError(409, "the job has not ended: follow its events", "job_not_ended")
        if kept.expires <= (now := self._clock()):
            raise ApiError(410, _EXPIRED, "results_expired")
        picture = next((picture for picture in kept.pictures if picture.image == n), None)
        if picture is None:
            raise ApiError(404, f"the job has no picture {n}", "picture_not_found", param="n")
        headers = {"ETag": f'"{picture.sha256}"', "Cache-Control": f"private, max-age={int(kept.expires - now)}"}
        known = [tag.strip().removeprefix("W/") for tag in (if_none_match or "").split(",")]
        if headers["ETag"] in known or "*" in known:
            return Response(status_code=304, headers=headers)
        with _storing():
            data = await self._runner.store.picture(picture)
        if data is None:
            raise ApiError(410, _EXPIRED, "results_expired")
        return Response(data, media_type=MEDIA_TYPES.get(picture.format, BYTES), headers=headers)

    async def _find(self, request: Request, job: str) -> KeptJob:
        return self._found(request, await self._runner.store.get(job))

    def _found(self, request: Request, kept: KeptJob | None) -> KeptJob:
        if kept is None or kept.client != self._sender(request).name:
            raise ApiError(404, "there is no such job", "job_not_found")
        return kept

    def _url(self, request: Request, job: KeptJob) -> str:
        return f"{request.scope.get('root_path', '')}{PATH}/{job.id}"

    async def _answer(self, request: Request, job: KeptJob) -> JobAnswer:
        outlook = await self._runner.outlook(job)
        started = self._runner.is_started(job)
        return job_answer(job, started=started, outlook=outlook, url=self._url(request, job), now=self._clock())
