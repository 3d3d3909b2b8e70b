"""The routes of native jobs where nothing keeps jobs: 501, with what to do. Knows no store."""

from collections.abc import Callable
from typing import Annotated

from fastapi import APIRouter, Depends, Request

from .errors import EVERYWHERE, ApiError, errors
from .job_answers import PATH
from .jobs import job_schema
from .keys import Key


def no_jobs_router(why: str, sender: Callable[[Request], Key]) -> APIRouter:
    """`why`: what the answers say. The body of a new job is documented all the same, as clients make forms of it."""
    router = APIRouter(prefix=PATH, tags=["jobs"])
    answers = errors({**EVERYWHERE, 501: "this server keeps no jobs"})
    body = {"required": True, "content": {"application/json": {"schema": job_schema()}}}

    async def refuse(_: Annotated[Key, Depends(sender)]) -> None:
        """This server keeps no jobs."""
        raise ApiError(501, why, "jobs_not_kept", retry=False)

    extra = {"requestBody": body}
    router.post("", status_code=501, responses=answers, openapi_extra=extra, name="create_job")(refuse)
    router.get("", status_code=501, responses=answers, name="list_jobs")(refuse)
    rest = {"status_code": 501, "include_in_schema": False}
    router.api_route("/{path:path}", methods=["GET", "DELETE"], name="jobs_not_kept", **rest)(refuse)  # type: ignore[arg-type]
    return router
