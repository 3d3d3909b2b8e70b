"""A service that draws nothing: pictures are made of the seed and the plan, or it fails as it is told."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.exports import SHAPES

from latentrt.runtime.bundle import Bundle
from latentrt.serve.messages import (
    Admitted,
    Done,
    Event,
    Failed,
    FailedKind,
    Job,
    Picture,
    Preview,
    Progress,
    Started,
)
from latentrt.serve.served_model import ServedModel
from latentrt.serve.service import Load

SIZE = {"width": 32, "height": 32, "num_inference_steps": 2}


def shapes_model(name: str = "shapes", **options: Any) -> ServedModel:
    """The embedded model, drawing small pictures."""
    return ServedModel(name, Bundle.open(SHAPES.bundle), sizes=[(32, 32), (64, 64), (48, 32)], **options)


def job_for(model: ServedModel, id_: str = "job", **values: Any) -> Job:
    """A job of this model; `values` are fields of `Job`, and `options` those of the call."""
    options = SIZE | values.pop("options", {})
    request = model.request(values.pop("prompt", "a red star"), options)
    return Job(id_, model.name, request, **{"client": "me", **values})


def names_in(folder: Path) -> list[str]:
    """The names of the files in a folder, hidden ones too."""
    return [file.name for file in folder.iterdir()]


def picture_of(job: Job, image: int) -> bytes:
    """The bytes of one picture: they depend on all that decides what it looks like."""
    request = job.request
    text = request.positive.texts[0][image].text
    facts = (request.seeds[image], text, job.output, job.loras, request.guidance_scale)
    return hashlib.sha256(repr(facts).encode() + request.plan.coefficients.tobytes()).digest() * 4


@dataclass(eq=False)
class FakeTicket:
    """An accepted job."""

    job: Job
    admitted: Admitted
    draws: Callable[["FakeTicket"], AsyncIterator[Event]]
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)

    async def events(self) -> AsyncIterator[Event]:
        """What the service's script says, or that it was cancelled."""
        async for event in self.draws(self):
            if self.cancelled.is_set():
                yield Failed(self.job.id, "cancelled", "the client has cancelled it")
                return
            yield event

    def cancel(self) -> None:
        """Stop at the next event."""
        self.cancelled.set()


@dataclass(eq=False)
class FakeService:
    """Implements `Service`. `ends` says how a job ends, by its prompt; `refuses` may raise."""

    model: ServedModel
    ends: dict[str, list[FailedKind | None]] = field(default_factory=dict)
    refuses: Callable[[Job], None] = lambda _: None
    pause: float = 0.0
    gate: asyncio.Event | None = None
    submitted: list[Job] = field(default_factory=list)
    beside: list[set[str]] = field(default_factory=list)
    open: set[str] = field(default_factory=set)
    is_ready: bool = True

    @property
    def models(self) -> Mapping[str, ServedModel]:
        """The only one."""
        return {self.model.name: self.model}

    async def submit(self, job: Job) -> FakeTicket:
        """Take it."""
        await asyncio.sleep(0)
        self.refuses(job)
        self.submitted.append(job)
        self.beside.append(set(self.open))
        self.open.add(job.id)
        return FakeTicket(job, Admitted(len(self.open) - 1, 0.5, 2.0), self._draw)

    async def _draw(self, ticket: FakeTicket) -> AsyncIterator[Event]:
        job = ticket.job
        ends = self.ends.get(job.request.positive.texts[0][0].text)
        kind = ends.pop(0) if ends else None
        try:
            await self._wait(ticket)
            yield Started(job.id)
            for call in (1, 2):
                await asyncio.sleep(self.pause)
                for image in range(job.images):
                    yield Progress(job.id, image, call, 2)
                    yield Preview(job.id, image, call, 0, b"preview %d" % call, "jpeg")
            await self._wait(ticket)
            if kind is not None:
                yield Failed(job.id, kind, f"told to: {kind}")
                return
            for image in range(job.images):
                data = picture_of(job, image)
                yield Picture(job.id, image, job.request.seeds[image], 32, 32, data, job.output.format)
            yield Done(job.id, {"queue": 1.0, "total": 11.0})
        finally:
            self.open.discard(job.id)

    async def _wait(self, ticket: FakeTicket) -> None:
        """Wait for the gate, where there is one, or for the ticket to be cancelled."""
        if self.gate is not None:
            waits = [asyncio.create_task(event.wait()) for event in (self.gate, ticket.cancelled)]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for wait in waits:
                wait.cancel()
        await asyncio.sleep(self.pause)

    def loads(self) -> list[Load]:
        """One device."""
        return [Load("cpu", self.is_ready, len(self.open), 0, 1000.0)]

    def ready(self, model: str | None = None) -> bool:
        """Always."""
        return model in (None, self.model.name)

    def live(self) -> bool:
        """Always."""
        return True
