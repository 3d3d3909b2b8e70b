"""The web UI's API over the fake service."""

import base64
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
from fastapi import FastAPI
from PIL import Image
from support.fake_service import FakeService, served

from latentrt.runtime.request import Request
from latentrt.serve.http.app import Face, make_app
from latentrt.serve.http.config import HttpConfig
from latentrt.serve.http.webui.router import webui_router
from latentrt.serve.metrics import Metrics


def face_of(service: FakeService, metrics: Metrics | None = None, pixels: int = HttpConfig().picture_pixels) -> Face:
    """The routes."""

    def face(sender: Any, reader: Any) -> Any:
        return webui_router(service, reader=reader, sender=sender, metrics=metrics or Metrics(), picture_pixels=pixels)

    return face


def app_of(service: FakeService, config: HttpConfig | None = None) -> FastAPI:
    """The server's app with the routes."""
    metrics, config = Metrics(), config or HttpConfig()
    return make_app(service, config, metrics=metrics, faces=[face_of(service, metrics, config.picture_pixels)])


@contextmanager
def web_ui(service: FakeService, config: HttpConfig | None = None) -> Iterator[httpx.Client]:
    """A client of a server with the routes."""
    with served(app_of(service, config)) as address, httpx.Client(base_url=address, timeout=60) as client:
        yield client


def last_request(service: FakeService) -> Request:
    """What the last call asked for."""
    return service.tickets[-1].job.request


def opened(b64: str) -> Image.Image:
    """A picture of an answer."""
    return Image.open(io.BytesIO(base64.b64decode(b64)))


def encoded(image: Image.Image, kind: str = "PNG") -> str:
    """A picture as base64."""
    file = io.BytesIO()
    image.save(file, kind)
    return base64.b64encode(file.getvalue()).decode()


def info(answer: httpx.Response) -> dict[str, Any]:
    """The settings of an answer, as clients read them."""
    assert answer.status_code == 200, answer.text
    content: dict[str, Any] = json.loads(answer.json()["info"])
    return content
