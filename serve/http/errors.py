"""Every error of the server as an answer: one table from what went wrong to status and headers, two forms of bodies."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException as StarletteHTTPException

from latentrt.runtime.errors import InputError, SchedulerError
from latentrt.runtime.request.options import OPTIONS
from latentrt.serve.messages import Failed, FailedKind, RefusedError, RefusedReason, retry_seconds

OPEN_INFERENCE = "/v2"  # below which errors are texts


class ErrorFields(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorAnswer(BaseModel):
    """An error in OpenAI's form."""

    error: ErrorFields


class ApiError(HTTPException):
    """An answer that is an error. `retry`: whether the same request may succeed later."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        *,
        param: str | None = None,
        retry: bool | None = None,
        retry_after: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        own = dict(headers or {})
        if retry is not None:
            own["x-should-retry"] = "true" if retry else "false"
        if retry_after is not None:
            own["Retry-After"] = str(retry_seconds(retry_after))
        super().__init__(status, message, own or None)
        self.code, self.param = code, param


@dataclass(frozen=True, slots=True)
class _Row:
    """How a failure is answered; `retry`: None leaves it to the client's own rule."""

    status: int
    code: str
    retry: bool | None = None
    retry_after: float | None = None


_REFUSED: Mapping[RefusedReason, _Row] = {
    "busy": _Row(429, "server_busy", True, 5),
    "client_busy": _Row(429, "too_many_jobs", True, 5),
    "deadline": _Row(504, "deadline_exceeded", False),
    "stopping": _Row(503, "server_stopping", True, 10),
    "starting": _Row(503, "server_starting", True, 5),
    "crashed": _Row(503, "device_restarted", True, 5),
    "unknown_model": _Row(404, "model_not_found"),
    "unloaded": _Row(503, "model_unloaded", False, 30),
}
_FAILED: Mapping[FailedKind, _Row] = {
    "cancelled": _Row(409, "cancelled", False),
    "deadline": _Row(504, "deadline_exceeded", False),
    "non_finite": _Row(500, "non_finite_picture", False),
    "filtered": _Row(400, "content_policy_violation"),
    "input": _Row(400, "invalid_request"),
    "out_of_memory": _Row(503, "out_of_memory", True, 10),
    "crashed": _Row(503, "device_restarted", True, 5),
    "poison": _Row(500, "job_kills_its_process", False),
    "model_changed": _Row(409, "model_changed", False),
    "stopped": _Row(503, "server_stopping", True, 10),
    "internal": _Row(500, "internal_error", False),
}
# How the operator could raise a limit, which is no advice for a client; and the option that a message begins with.
_OPERATORS_ADVICE, _NAME = re.compile(r"; set LATENTRT_\w+ to raise the limit"), re.compile(r"(\w+)\b")
_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


def refused(error: RefusedError) -> ApiError:
    """The answer to a job that is not accepted."""
    row = _REFUSED[error.reason]
    after = error.retry_after if error.retry_after is not None else row.retry_after
    return ApiError(row.status, error.message, row.code, retry=row.retry, retry_after=after)


def failed(event: Failed) -> ApiError:
    """The answer where a job has failed."""
    row = _FAILED[event.kind]
    return ApiError(row.status, event.message, row.code, retry=row.retry, retry_after=row.retry_after)


def wrong_input(error: InputError | SchedulerError, words: Mapping[str, str]) -> ApiError:
    """The answer to what the library refuses. `words`: what the client called options, by their names in the table."""
    text = _OPERATORS_ADVICE.sub("", str(error))
    for name, word in words.items():
        text = re.sub(rf"\b{name}\b", word, text)
    first = _NAME.match(text)
    param = first[1] if first and first[1] in {*OPTIONS, *words.values()} else None
    return ApiError(400, text, "invalid_request", param=param)


def body_of(error: StarletteHTTPException) -> dict[str, Any]:
    """The body of an error's answer, as OpenAI's clients read it."""
    kind = _TYPES.get(error.status_code, "server_error" if error.status_code >= 500 else "invalid_request_error")
    code, param = getattr(error, "code", None), getattr(error, "param", None)
    return {"error": {"message": _sent(str(error.detail)), "type": kind, "param": param and _sent(param), "code": code}}


def error_response(error: StarletteHTTPException, scope: Mapping[str, Any]) -> JSONResponse:
    """An error's answer: of the Open Inference Protocol's paths in its form, of all others in OpenAI's."""
    path = scope["path"].removeprefix(scope.get("root_path", ""))
    plain = path == OPEN_INFERENCE or path.startswith(f"{OPEN_INFERENCE}/")
    body = {"error": _sent(str(error.detail))} if plain else body_of(error)
    return JSONResponse(body, error.status_code, error.headers)


def _sent(text: str) -> str:
    """A text that UTF-8 can hold: what a client sent may have halves of surrogate pairs."""
    return text.encode(errors="backslashreplace").decode()


def as_api_error(error: Exception) -> StarletteHTTPException:
    """Any exception as an answer. What the library says of a call is told, everything else stays in the log."""
    if isinstance(error, StarletteHTTPException):
        return error
    if isinstance(error, RefusedError):
        return refused(error)
    if isinstance(error, InputError | SchedulerError):
        return wrong_input(error, {})
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        return ApiError(400, f"{place}: {first['msg']}", "invalid_request", param=str(first["loc"][-1]))
    return ApiError(500, "the server failed; its log says more", "internal_error", retry=False)


def add_handlers(app: FastAPI) -> None:
    """Answer exceptions of routes in the form of their API; what nobody expected is left to `Failures`."""

    async def answer(request: Request, error: Exception) -> JSONResponse:
        return error_response(as_api_error(error), request.scope)

    for kind in (StarletteHTTPException, RefusedError, InputError, SchedulerError, RequestValidationError):
        app.add_exception_handler(kind, answer)


# Answers that every route may give, and those of routes that take work.
EVERYWHERE = {
    400: "the request is not valid",
    401: "no valid key was given",
    403: "the page that asks is of another site",
    404: "there is no such thing",
    405: "the method is not allowed here",
    500: "the server failed",
}
OF_WORK = {
    408: "the body came too slowly",
    409: "the idempotency key is in use for another request",
    413: "the body is too large",
    415: "the body is compressed",
    429: "too much work waits; Retry-After says when to ask again",
    503: "the server starts or stops, or a device starts again",
    504: "the deadline cannot be met",
}


def errors(statuses: Mapping[int, str], model: type[BaseModel] = ErrorAnswer) -> dict[int | str, dict[str, Any]]:
    """The answers that are errors, for OpenAPI. `model`: of an API's form."""
    return {status: {"model": model, "description": text} for status, text in statuses.items()}
