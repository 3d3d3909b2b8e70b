"""A `Service` without devices: jobs take a fixed time, one after the other, and end as their prompt says."""

import asyncio
import io
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import uvicorn
from fastapi import APIRouter, Request
from PIL import Image

from latentrt.runtime import Bundle
from latentrt.runtime.pipeline import embedded_bundle
from latentrt.serve.http.app import Face
from latentrt.serve.http.bodies import CallReader
from latentrt.serve.http.keys import Key
from latentrt.serve.http.kserve.routes import kserve_router
from latentrt.serve.messages import (
    Admitted,
    Done,
    Event,
    Failed,
    Job,
    Picture,
    Preview,
    Progress,
    RefusedError,
    Started,
)
from latentrt.serve.metrics import Metrics
from latentrt.serve.served_model import ServedModel
from latentrt.serve.service import Load, ModelState

SIZES = ((128, 128), (192, 128), (128, 192))


def picture_bytes(width: int, height: int, seed: int, kind: str = "PNG") -> bytes:
    """A picture of one colour, which is the seed's."""
    file, image = io.BytesIO(), Image.new("RGB", (width, height), (seed % 256, seed // 256 % 256, 0))
    if kind == "LATENTS":
        return bytes(4 * 4 * (height // 8) * (width // 8))  # zeros, (4, h, w) float32
    if kind == "RAW":
        return image.tobytes()
    image.save(file, kind)
    return file.getvalue()


@dataclass(eq=False)
class FakeTicket:
    """See `Ticket`."""

    job: Job
    service: "FakeService"
    admitted: Admitted = field(default_factory=lambda: Admitted(0, 0.0, 0.1))
    cancelled: bool = False
    over: bool = False

    async def events(self) -> AsyncIterator[Event]:
        async for event in self._events():
            self.over = isinstance(event, Done | Failed)
            yield event

    async def _events(self) -> AsyncIterator[Event]:
        job, request = self.job, self.job.request
        yield Started(job.id)
        calls = len(request.plan)
        for call in range(1, calls + 1):
            await asyncio.sleep(self.service.delay)
            if self.cancelled:
                yield Failed(job.id, "cancelled", "cancelled by the client")
                return
            for image in range(job.images):
                yield Progress(job.id, image, call, calls)
            if job.previews is not None and call <= job.previews.count:
                yield Preview(job.id, 0, call, call - 1, picture_bytes(16, 16, call), "png")
        text = request.positive.texts[0][0].text
        if text.startswith("fail "):
            yield Failed(job.id, text.split()[1], "as the test asked for")  # type: ignore[arg-type]
            return
        for image, seed in enumerate(request.seeds):
            kind = job.output.format
            data = picture_bytes(request.width, request.height, seed, kind.upper())
            yield Picture(job.id, image, seed, request.height, request.width, data, kind)
        yield Done(job.id, {"queue": 1.0, "encode": 2.0, "denoise": 3.0, "decode": 4.0, "total": 10.0})

    def cancel(self) -> None:
        if not self.over:
            self.cancelled = True


class FakeService:
    """See `Service`. `refusals` are raised by the next submits."""

    def __init__(self, delay: float = 0.001) -> None:
        model = ServedModel("shapes", Bundle.open(embedded_bundle()), sizes=SIZES)
        self.models: Mapping[str, ServedModel] = {"shapes": model}
        self.delay = delay
        self.tickets: list[FakeTicket] = []
        self.refusals: list[RefusedError] = []
        self.is_ready = self.is_live = True

    async def submit(self, job: Job) -> FakeTicket:
        if self.refusals:
            raise self.refusals.pop(0)
        self.tickets.append(FakeTicket(job, self))
        return self.tickets[-1]

    def loads(self) -> list[Load]:
        running = sum(not ticket.over for ticket in self.tickets)
        return [Load("fake", self.is_ready, 0, running, 100.0 * running)]

    def ready(self, model: str | None = None) -> bool:
        return self.is_ready and (model is None or model in self.models)

    def live(self) -> bool:
        return self.is_live


class FakeRepository:
    """See `Repository`. Models change at once."""

    def __init__(self, service: FakeService) -> None:
        self.states: dict[str, ModelState] = dict.fromkeys(service.models, "loaded")
        self.refusals: list[RefusedError] = []

    def state(self, model: str) -> ModelState:
        return self.states[model]

    async def load(self, model: str) -> None:
        if self.refusals:
            raise self.refusals.pop(0)
        self.states[model] = "loaded"

    def unload(self, model: str) -> None:
        self.states[model] = "unloading"


def kserve_face(service: FakeService, repository: FakeRepository) -> Face:
    """The face of the Open Inference Protocol."""

    def face(sender: Callable[[Request], Key], reader: CallReader) -> APIRouter:
        return kserve_router(service, repository, reader=reader, sender=sender, metrics=Metrics())

    return face


@contextmanager
def served(app: Callable[..., object]) -> Iterator[str]:
    """A uvicorn server in a thread; yields its address."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", lifespan="on"))  # type: ignore[arg-type]
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        threading.Event().wait(0.01)
        assert thread.is_alive()
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(20)
