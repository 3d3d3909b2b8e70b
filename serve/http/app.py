"""The server's app: routes, keys and limits over a `Service`."""

from collections.abc import Callable, Iterable
from functools import partial
from importlib.metadata import version
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from starlette.middleware.cors import CORSMiddleware

from latentrt.serve.metrics import Metrics
from latentrt.serve.service import Service

from .bodies import CallReader
from .config import HttpConfig
from .document import complete
from .errors import add_handlers
from .idempotency import Idempotency
from .keys import Key, Keys
from .middleware import BodyLimit, Failures, HeadAsGet, OwnPages, RequestIds
from .openai import OpenAIRoutes, openai_router
from .operations import operations_router
from .page import page_router

# Takes the dependency that says who sends a request, and the reader of bodies.
Face = Callable[[Callable[[Request], Key], CallReader], APIRouter]


def make_app(
    service: Service,
    config: HttpConfig | None = None,
    *,
    metrics: Metrics | None = None,
    faces: Iterable[Face] = (),
    lifespan: Any = None,
) -> FastAPI:
    """The app.

    Args:
        metrics: also fed by whoever sees events and UNet calls.
        faces: make more routes, such as those of native jobs.
        lifespan: as FastAPI's.
    """
    config, metrics = config or HttpConfig(), metrics or Metrics()
    # No pages of documentation, as theirs load scripts from another host.
    app = FastAPI(
        title="latentrt",
        version=version("latentrt"),
        summary="Pictures from texts",
        root_path=config.root_path,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # behind a proxy they would lead elsewhere
        lifespan=lifespan,
    )
    keys, reader = Keys(config.keys), CallReader(service.models, config)

    def sender(request: Request) -> Key:
        """Who sends a request: the holder of its key, or its address on a server without keys."""
        address = request.client.host if request.client else "local"
        return keys.client(request.headers, address)

    routes = OpenAIRoutes(service, reader, metrics, Idempotency(config.idempotency_seconds), config.picture_pixels)
    app.include_router(operations_router(service, metrics))
    app.include_router(openai_router(routes, sender))
    app.include_router(page_router())
    for face in faces:
        app.include_router(face(sender, reader))
    add_handlers(app)
    app.add_middleware(Failures, log_messages=config.log_prompts)
    app.add_middleware(BodyLimit, most=config.body_bytes, together=config.bodies_bytes, seconds=config.body_seconds)
    if config.cors:
        app.add_middleware(
            CORSMiddleware, allow_origins=config.cors, allow_methods=["*"], allow_headers=["*"], expose_headers=["*"]
        )
    app.add_middleware(OwnPages, allowed=config.cors)
    app.add_middleware(HeadAsGet)
    app.add_middleware(RequestIds, answered=metrics.observe_answer)
    app.state.reader = reader
    app.openapi = partial(_document, app, app.openapi, keys=config.keys is not None)  # type: ignore[method-assign]
    return app


def _document(app: FastAPI, make: Callable[[], dict[str, Any]], *, keys: bool) -> dict[str, Any]:
    """The OpenAPI document."""
    if app.openapi_schema is None:
        complete(make(), keys=keys)
    assert app.openapi_schema is not None
    return app.openapi_schema
