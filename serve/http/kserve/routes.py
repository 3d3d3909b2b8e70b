"""The protocol's routes: server, models, inference."""

from collections.abc import Callable
from importlib.metadata import version
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Path, Request, Response
from fastapi.responses import JSONResponse

from latentrt.runtime.request.control_options import NETS
from latentrt.serve.http.bodies import CallReader
from latentrt.serve.http.errors import EVERYWHERE, OF_WORK, OPEN_INFERENCE, ApiError, errors
from latentrt.serve.http.following import Drawn, drawn, submitted, unless_gone
from latentrt.serve.http.keys import Key
from latentrt.serve.http.operations import RETRY_AFTER
from latentrt.serve.metrics import Metrics
from latentrt.serve.served_model import ServedModel
from latentrt.serve.service import Repository, Service

from .answers import (
    InferAnswer,
    Live,
    ModelMetadata,
    ModelReady,
    Ready,
    ServerMetadata,
    TensorMetadata,
    TextError,
    infer_schema,
)
from .envelope import BINARY, HEADER, read_request, written
from .inference import Inference, checked, tensors
from .repository import repository_router
from .signature import OUTPUTS, Input, Output, inputs_of

VERSION = "1"  # of each model: a bundle has one
EXTENSIONS = ("binary_tensor_data", "model_repository", "model_repository(unload_dependents)")

ModelName = Annotated[str, Path(max_length=128, description="or an alias")]
ModelVersion = Annotated[str, Path(max_length=32)]


def kserve_router(
    service: Service,
    repository: Repository,
    *,
    reader: CallReader,
    sender: Callable[[Request], Key],
    metrics: Metrics,
) -> APIRouter:
    """The routes under /v2. `sender`: who sends a request."""
    routes = _Routes(service, reader, metrics, sender)
    router = APIRouter(prefix=OPEN_INFERENCE, tags=["Open Inference Protocol"])
    told, needs_key = errors(EVERYWHERE, TextError), [Depends(sender)]
    work = errors({**EVERYWHERE, **OF_WORK}, TextError)

    def not_now(model: type[Any]) -> dict[int | str, dict[str, Any]]:
        return {**told, 503: {"model": model, "description": "not now"}}

    router.get("", responses=told, dependencies=needs_key, name="v2_server")(routes.server)
    router.get("/health/live", response_model=Live, responses=not_now(Live), name="v2_live")(routes.live)
    router.get("/health/ready", response_model=Ready, responses=not_now(Ready), name="v2_ready")(routes.ready)
    infer: dict[str, Any] = {
        "responses": {200: _infer_answer(), **work},
        "openapi_extra": {"requestBody": _infer_body()},
    }
    for path, name in (("/models/{model}", "v2_model"), ("/models/{model}/versions/{number}", "v2_version")):
        checks = [*needs_key, *([Depends(_check_version)] if "number" in path else [])]
        router.get(path, responses=told, dependencies=checks, name=name)(routes.model)
        router.get(
            f"{path}/ready",
            response_model=ModelReady,
            responses=not_now(ModelReady),
            dependencies=checks,
            name=f"{name}_ready",
        )(routes.model_ready)
        router.post(f"{path}/infer", dependencies=checks, name=f"{name}_infer", **infer)(routes.infer)
    router.include_router(repository_router(service, repository, reader=reader, sender=sender))
    return router


def _check_version(number: ModelVersion) -> None:
    if number != VERSION:
        raise ApiError(404, f"the model has no version {number[:32]!r}: expected {VERSION}", "model_not_found")


def _infer_body() -> dict[str, Any]:
    """OpenAPI of a request's body."""
    behind = {"type": "string", "format": "binary", "description": "JSON, and behind it the tensors' binary data"}
    content = {"application/json": {"schema": infer_schema()}, BINARY: {"schema": behind}}
    return {"required": True, "content": content}


def _infer_answer() -> dict[str, Any]:
    header = {"schema": {"type": "string"}, "description": "bytes of the JSON, where binary data stands behind it"}
    timing = {"schema": {"type": "string"}, "description": "milliseconds of queue, encode, denoise and decode"}
    return {
        "model": InferAnswer,
        "content": {BINARY: {"schema": {"type": "string", "format": "binary"}}},
        "description": "the outputs",
        "headers": {HEADER: header, "Server-Timing": timing},
    }


def _metadata(tensor: Input | Output) -> TensorMetadata:
    return TensorMetadata(name=tensor.name, datatype=tensor.datatype, shape=[*tensor.shape])


class _Routes:
    def __init__(
        self, service: Service, reader: CallReader, metrics: Metrics, sender: Callable[[Request], Key]
    ) -> None:
        self._service, self._reader, self._metrics, self._sender = service, reader, metrics, sender

    async def server(self) -> ServerMetadata:
        """The server's name and version."""
        return ServerMetadata(name="latentrt", version=version("latentrt"), extensions=[*EXTENSIONS])

    async def live(self) -> Response:
        """503 asks to be started anew."""
        live = self._service.live()
        return JSONResponse({"live": live}, 200 if live else 503, None if live else RETRY_AFTER)

    async def ready(self) -> Response:
        """503 while models load, and from the moment when the server is told to stop."""
        ready = self._service.ready()
        return JSONResponse({"ready": ready}, 200 if ready else 503, None if ready else RETRY_AFTER)

    async def model(self, model: ModelName) -> ModelMetadata:
        """A model's inputs and outputs."""
        served = self._reader.model(model)
        nets = [name for name, control in served.controls.items() if control.kind in NETS]
        return ModelMetadata(
            name=served.name,
            versions=[VERSION],
            platform="latentrt_bundle",
            inputs=[_metadata(tensor) for tensor in inputs_of(nets)],
            outputs=[_metadata(tensor) for tensor in OUTPUTS.values()],
        )

    async def model_ready(self, model: ModelName) -> Response:
        """503 while a model loads, or is unloaded."""
        name = self._reader.model(model).name
        ready = self._service.ready(name)
        return JSONResponse({"name": name, "ready": ready}, 200 if ready else 503, None if ready else RETRY_AFTER)

    async def infer(
        self,
        request: Request,
        model: ModelName,
        header_length: Annotated[
            str | None, Header(alias=HEADER, max_length=20, description="bytes of the body's JSON")
        ] = None,
    ) -> Response:
        """Draw a picture for each text of `prompt`. Options are inputs or parameters; see the model's metadata."""
        served, key, body = self._reader.model(model), self._sender(request), await request.body()
        inference = await self._reader.in_thread(
            lambda: checked(read_request(body, header_length), served, self._reader, key)
        )
        ticket = await submitted(self._service, inference.job, self._metrics)
        result = await unless_gone(request, drawn(ticket))
        return await self._reader.answered(lambda: _answer(served, inference, result))


def _answer(model: ServedModel, inference: Inference, result: Drawn) -> Response:
    facts = {"model_name": model.name, "model_version": VERSION}
    if inference.id is not None:
        facts["id"] = inference.id
    return written(facts, tensors(inference, result), {"Server-Timing": result.server_timing()})
