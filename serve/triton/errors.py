"""Errors in Triton's words: one of its few codes, and a text that keeps the code of the HTTP faces."""

from dataclasses import dataclass

from latentrt.serve.http.errors import as_api_error
from latentrt.serve.http.following import CLIENT_GONE

_CODES = {400: "INVALID_ARG", 404: "NOT_FOUND", 409: "CANCELLED", CLIENT_GONE: "CANCELLED"}
_LATER = {429: "UNAVAILABLE", 503: "UNAVAILABLE", 504: "UNAVAILABLE"}


@dataclass(frozen=True, slots=True)
class TritonError:
    """An error. `code`: the name of one of those of `triton_python_backend_utils.TritonError`."""

    code: str
    text: str


def triton_error(error: Exception) -> TritonError:
    """What a client is told: such as "… [server_busy, 429; again after 3 s]"."""
    answer = as_api_error(error)
    code = getattr(answer, "code", None)
    after = (answer.headers or {}).get("Retry-After")
    kept = f"{code or 'error'}, {answer.status_code}" + (f"; again after {after} s" if after else "")
    text = f"{answer.detail} [{kept}]".encode(errors="backslashreplace").decode()
    return TritonError({**_CODES, **_LATER}.get(answer.status_code, "INTERNAL"), text)
