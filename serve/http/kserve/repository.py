"""The repository of models: which there are, and to load and unload them. For keys with `admin = true` alone."""

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Request

from latentrt.runtime.errors import InputError, shown, unknown
from latentrt.serve.http.bodies import CallReader, json_object
from latentrt.serve.http.errors import EVERYWHERE, OF_WORK, ApiError, errors
from latentrt.serve.http.keys import Key
from latentrt.serve.service import ModelState, Repository, Service

from .answers import IndexEntry, TextError

_STATES: dict[ModelState, Any] = {
    "loaded": "READY",
    "loading": "LOADING",
    "unloading": "UNLOADING",
    "unloaded": "UNAVAILABLE",
}
ModelName = Annotated[str, Path(max_length=128, description="a model of the operator's, or its alias")]


def repository_router(
    service: Service, repository: Repository, *, reader: CallReader, sender: Callable[[Request], Key]
) -> APIRouter:
    """The routes under /v2/repository."""

    def administrator(request: Request) -> None:
        """Raises `ApiError` 403 for everyone but the holders of keys with `admin = true`."""
        key = sender(request)
        if not key.admin:
            server = "this server has no keys" if not key.sha256 else "this key may not manage models"
            raise ApiError(403, f"{server}: expected a key with admin = true in the file --keys", "admin_key_needed")

    routes = _Routes(service, repository, reader)
    router = APIRouter(prefix="/repository", dependencies=[Depends(administrator)])
    forbidden = {403: "the key has not admin = true, or the page that asks is of another site"}
    told = errors({**EVERYWHERE, **OF_WORK, **forbidden}, TextError)
    router.post("/index", responses=told, openapi_extra=_body(ready="boolean"), name="v2_index")(routes.index)
    router.post("/models/{model}/load", responses=told, openapi_extra=_body(), name="v2_load")(routes.load)
    unload = _body(parameters={"unload_dependents": "boolean"})
    router.post("/models/{model}/unload", responses=told, openapi_extra=unload, name="v2_unload")(routes.unload)
    return router


def _body(**fields: "str | dict[str, str]") -> dict[str, Any]:
    """OpenAPI of a body that may be missing, with fields of these types."""
    return {"requestBody": {"required": False, "content": {"application/json": {"schema": _schema(fields)}}}}


def _schema(fields: "dict[str, Any] | str") -> dict[str, Any]:
    if isinstance(fields, str):
        return {"type": fields}
    properties = {name: _schema(field) for name, field in fields.items()}
    return {"type": "object", "properties": properties, "additionalProperties": False}


class _Routes:
    def __init__(self, service: Service, repository: Repository, reader: CallReader) -> None:
        self._service, self._repository, self._reader = service, repository, reader

    async def index(self, request: Request) -> list[IndexEntry]:
        """The models, and whether they are loaded. `ready`: only those that take work."""
        body = await self._read(request, "ready")
        only_ready = _flag("ready", body.get("ready"))
        entries = [self._entry(name) for name in self._service.models]
        return [entry for entry in entries if not only_ready or entry.state == "READY"]

    async def load(self, request: Request, model: ModelName) -> dict[str, str]:
        """Load a model; answers when it takes work. One that is loaded stays as it is."""
        body = await self._read(request, "parameters")
        self._parameters(body)
        await self._repository.load(self._reader.model(model).name)
        return {}

    async def unload(self, request: Request, model: ModelName) -> dict[str, str]:
        """Refuse work for a model from now on; its memory is freed when what it accepted is done: see the index."""
        body = await self._read(request, "parameters")
        parameters = self._parameters(body, "unload_dependents")
        _flag("unload_dependents", parameters.get("unload_dependents"))  # models depend on nothing here
        self._repository.unload(self._reader.model(model).name)
        return {}

    def _entry(self, name: str) -> IndexEntry:
        state = self._repository.state(name)
        if state == "loaded" and not self._service.ready(name):
            return IndexEntry(name=name, version="1", state="UNAVAILABLE", reason="no device is ready for it")
        reasons = {"unloading": "what it accepted is still drawn", "unloaded": "unloaded by the operator"}
        return IndexEntry(name=name, version="1", state=_STATES[state], reason=reasons.get(state, ""))

    async def _read(self, request: Request, *known: str) -> dict[str, Any]:
        data = await request.body()
        body = await self._reader.in_thread(lambda: json_object(data)) if data.strip() else {}
        for name in body:
            if name not in known:
                raise InputError(unknown("field", name, known))
        return body

    def _parameters(self, body: dict[str, Any], *known: str) -> dict[str, Any]:
        parameters = body.get("parameters") or {}
        if not isinstance(parameters, dict):
            raise InputError(f"parameters={shown(parameters)}: expected an object")
        for name in parameters:
            if name not in known:
                raise InputError(f"the parameter {shown(name)} is not taken: models are those that the operator named")
        return parameters


def _flag(name: str, value: Any) -> bool:
    if value is not None and not isinstance(value, bool):
        raise InputError(f"{name}={shown(value)}: expected true or false")
    return bool(value)
