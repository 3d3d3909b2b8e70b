"""All routes of the web UI's API."""

from collections.abc import Callable

from fastapi import APIRouter, Request

from latentrt.serve.http.bodies import CallReader
from latentrt.serve.http.keys import Key
from latentrt.serve.metrics import Metrics
from latentrt.serve.service import Service

from .chosen import ChosenModels
from .drawing import DrawingRoutes
from .lists import ListRoutes


def webui_router(
    service: Service,
    *,
    reader: CallReader,
    sender: Callable[[Request], Key],
    metrics: Metrics,
    picture_pixels: int,
) -> APIRouter:
    """The routes under `/sdapi/v1`, and `/internal/progress`.

    Args:
        sender: who sends a request.
        picture_pixels: of a picture that a client sends, at most.
    """
    chosen, router = ChosenModels(), APIRouter()
    router.include_router(DrawingRoutes(service, reader, sender, metrics, chosen, picture_pixels).router())
    router.include_router(ListRoutes(service, reader, sender, chosen, picture_pixels).router())
    return router
