"""What operators and orchestrators ask: is it alive, does it take work, what does it do. Needs no key."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from pydantic import BaseModel

from latentrt.runtime.errors import unknown
from latentrt.serve.metrics import Metrics
from latentrt.serve.service import Service

from .errors import EVERYWHERE, ApiError, errors

RETRY_AFTER = {"Retry-After": "5"}


class Health(BaseModel):
    """Whether the server lives, or takes work."""

    status: str
    models: dict[str, bool]


def operations_router(service: Service, metrics: Metrics) -> APIRouter:
    """/live, /ready and /metrics."""
    router = APIRouter(tags=["operations"])
    unhealthy: dict[int | str, dict[str, Any]] = {503: {"model": Health, "description": "not now"}}

    def health(well: bool, word: str) -> Response:
        models = {name: service.ready(name) for name in service.models}
        content = Health(status=word if well else f"not {word}", models=models).model_dump()
        return JSONResponse(content, 200 if well else 503, None if well else RETRY_AFTER)

    @router.get("/live", response_model=Health, responses={**errors(EVERYWHERE), **unhealthy}, name="live")
    async def live() -> Response:
        """503 asks to be started anew. A full queue is not a reason."""
        return health(service.live(), "alive")

    @router.get("/ready", response_model=Health, responses={**errors(EVERYWHERE), **unhealthy}, name="ready")
    async def ready(model: Annotated[str | None, Query(max_length=128)] = None) -> Response:
        """503 while models load, and from the moment when the server is told to stop."""
        if model is not None and model not in service.models:
            raise ApiError(404, unknown("model", model, service.models), "model_not_found", param="model")
        return health(service.ready(model), "ready")

    @router.get(
        "/metrics",
        response_class=PlainTextResponse,
        responses={
            200: {"content": {"text/plain": {}}, "description": "in Prometheus' text format"},
            **errors(EVERYWHERE),
        },
        name="metrics",
    )
    async def prometheus() -> Response:
        """What Prometheus scrapes."""
        return Response(metrics.text(service.loads()), media_type="text/plain; version=0.0.4; charset=utf-8")

    return router
