"""Errors of the web UI's routes, with `detail`, which its clients read; and the statuses that the document names."""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from latentrt.runtime.errors import InputError, SchedulerError
from latentrt.serve.http.errors import EVERYWHERE, OF_WORK, as_api_error, body_of
from latentrt.serve.messages import RefusedError

from .answers import WebUiError

_STATUSES = {**EVERYWHERE, **OF_WORK, 409: "the call was interrupted before a picture was finished"}
_TOLD = (HTTPException, RefusedError, InputError, SchedulerError, RequestValidationError)


class WebUiRoute(APIRoute):
    """A route whose errors have `detail`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """See FastAPI's."""
        handle = super().get_route_handler()

        async def handled(request: Request) -> Response:
            try:
                return await handle(request)
            except _TOLD as error:
                told = as_api_error(error)
                body = body_of(told)
                return JSONResponse({**body, "detail": body["error"]["message"]}, told.status_code, told.headers)

        return handled


def answers(*, work: bool = False, body: bool = False) -> dict[int | str, dict[str, Any]]:
    """The answers that are errors, for OpenAPI. `work`: of routes that draw; `body`: of others that read a body."""
    chosen = [*EVERYWHERE, *(OF_WORK if work else (408, 413, 415, 429) if body else ())]
    return {status: {"model": WebUiError, "description": _STATUSES[status]} for status in chosen}
