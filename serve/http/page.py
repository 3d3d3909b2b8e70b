"""The page at `/`: a client of the server for people. Its files are part of the package, and no other is ever sent."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Annotated

from fastapi import APIRouter, Header, Response

from .errors import ApiError

PATH = "/page"
INDEX = "index.html"
_MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Nothing from other hosts, nothing inline, and no other page may hold this one.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "form-action 'none'; frame-ancestors 'none'; base-uri 'none'"
)
_HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # kept, and asked for by its ETag: a new server has a new page at once
}


@dataclass(frozen=True, slots=True)
class _File:
    data: bytes
    media_type: str
    etag: str


def page_files() -> Mapping[str, _File]:
    """The files of the page by name, with their media types and hashes."""
    result = {}
    for file in files("latentrt.serve").joinpath("page").iterdir():
        data, suffix = file.read_bytes(), f".{file.name.rpartition('.')[2]}"
        result[file.name] = _File(data, _MEDIA_TYPES[suffix], f'"{hashlib.sha256(data).hexdigest()[:32]}"')
    return result


def page_router() -> APIRouter:
    """/ and /page/NAME. They need no key, hold nothing of the server's state, and are not in the OpenAPI document."""
    known = page_files()
    router = APIRouter(include_in_schema=False)
    tags = Annotated[str | None, Header(alias="if-none-match")]

    def answer(name: str, if_none_match: str | None) -> Response:
        if name not in known:
            raise ApiError(404, f"the page has no file {name[:80]!r}", "not_found")
        file = known[name]
        headers = {**_HEADERS, "ETag": file.etag}
        given = [tag.strip().removeprefix("W/") for tag in (if_none_match or "").split(",")]
        if file.etag in given or "*" in given:
            return Response(status_code=304, headers=headers)
        return Response(file.data, media_type=file.media_type, headers=headers)

    @router.get("/", name="page")
    async def index(if_none_match: tags = None) -> Response:
        """The page."""
        return answer(INDEX, if_none_match)

    @router.get(f"{PATH}/{{name}}", name="page_file")
    async def part(name: str, if_none_match: tags = None) -> Response:
        """Styles, scripts and pictures of the page."""
        return answer(name, if_none_match)

    return router
