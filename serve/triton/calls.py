"""One request of Triton: read, drawn, and answered response by response. Knows neither Triton's modules nor threads.

Inputs, parameters and outputs are those of the Open Inference Protocol at `latentrt serve`, besides `previews` and what
`outputs.py` adds.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np

from latentrt.runtime.errors import InputError, shown
from latentrt.runtime.limits import MAX_STEPS
from latentrt.serve.http.bodies import CallReader, json_object
from latentrt.serve.http.following import drawn, unless_left
from latentrt.serve.http.given_files import base64_text
from latentrt.serve.http.keys import Key
from latentrt.serve.http.kserve.envelope import Asked, Given
from latentrt.serve.http.kserve.inference import TIMEOUT, Inference, checked, tensors
from latentrt.serve.http.kserve.signature import OUTPUTS, PIXELS
from latentrt.serve.http.kserve.tensors import BYTES, Tensor
from latentrt.serve.messages import Admitted, Event, Job, Preview, Previews, Progress
from latentrt.serve.served_model import ServedModel
from latentrt.serve.service import Service, Ticket

from .outputs import OF_PROGRESS, PREVIEW, PROGRESS, outputs_of

# Seconds between two looks whether a client has cancelled, and how many of them a second has for all: each takes a
# tenth of a millisecond.
LOOK, LOOKS = 0.1, 500
RESERVED = "triton_"  # begins the names of Triton's own parameters
CLIENT = Key("")  # Triton does not say who asks


@dataclass(frozen=True, slots=True)
class Received:
    """A request.

    Attributes:
        outputs: those that are wanted; all of them where the client names none.
        parameters: a JSON object.
        timeout: microseconds; 0 is without.
    """

    inputs: Sequence[Tensor]
    outputs: Collection[str]
    parameters: str = "{}"
    timeout: int = 0


class Sender(Protocol):
    """Where the responses of a request go. Thread-safe."""

    def send(self, outputs: Sequence[Given], *, final: bool) -> None:
        """Send a response; ignored after the final one."""

    def is_cancelled(self) -> bool:
        """Whether the client does not want it any more."""


class Face:
    """What answers the requests for a model. Used from one event loop."""

    def __init__(self, service: Service, model: ServedModel, reader: CallReader, *, progress: bool) -> None:
        """`progress`: whether a request may have several responses."""
        self._service, self._model, self._reader, self._progress = service, model, reader, progress
        self._under_way = 0

    async def answer(self, received: Received, sender: Sender) -> None:
        """Draw what a request asks for and send it; raises what `as_api_error` knows, and then nothing final was sent.

        A request that the client cancels leaves its slots, and raises `ApiError` 499.
        """
        inference = await self._reader.in_thread(lambda: self._read(received))
        self._under_way += 1
        try:
            await unless_left(self._cancelled(sender), self._draw(inference, received.outputs, sender))
        finally:
            self._under_way -= 1

    async def _cancelled(self, sender: Sender) -> None:
        """Returns when the client has cancelled the request."""
        while not sender.is_cancelled():
            await asyncio.sleep(max(LOOK, self._under_way / LOOKS))

    async def _draw(self, inference: Inference, wanted: Collection[str], sender: Sender) -> None:
        ticket = await self._service.submit(inference.job)
        if self._progress:
            ticket = _Followed(ticket, self._reader, sender, wanted)
        result = await drawn(ticket)
        await self._reader.answered(lambda: sender.send(tensors(inference, result), final=True))

    def _read(self, received: Received) -> Inference:
        """Raises `InputError`, `ApiError`."""
        parameters = _parameters(received)
        previews = _previews(parameters.pop("previews", None)) if self._progress else None
        asked = Asked(None, parameters, received.inputs, self._pictures(received.outputs, parameters), True)
        return checked(
            asked, self._model, self._reader, CLIENT, previews=previews if PREVIEW in received.outputs else None
        )

    def _pictures(self, wanted: Collection[str], parameters: Mapping[str, Any]) -> dict[str, bool | None]:
        """The outputs of the last response.

        Triton wants all of them for clients that name none, and such a client does not want pixels of a JPEG.
        """
        names = [name for name in OUTPUTS if name in wanted]
        everything = {*wanted} == {*outputs_of(progress=self._progress)}
        if everything and parameters.get("output_format", "png") != "png":
            names.remove(PIXELS)
        return dict.fromkeys(names)


def _parameters(received: Received) -> dict[str, Any]:
    """The parameters, as JSON has them at /v2: objects are texts here, as Triton has none."""
    given = json.loads(received.parameters or "{}")
    parameters = {name: value for name, value in given.items() if not name.startswith(RESERVED)}
    if isinstance(loras := parameters.get("loras"), str):
        parameters["loras"] = json_object(loras.encode(errors="replace"))
    if received.timeout:
        parameters[TIMEOUT] = received.timeout
    return parameters


def _previews(count: Any) -> Previews | None:
    if count is None:
        return None
    if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count <= MAX_STEPS:
        raise InputError(f"previews={shown(count)}: expected an integer from 0 to {MAX_STEPS}")
    return Previews("auto", count)


@dataclass(frozen=True, slots=True)
class _Followed:
    """A ticket whose progress and previews are sent while its events are read."""

    ticket: Ticket
    reader: CallReader
    sender: Sender
    wanted: Collection[str]

    @property
    def job(self) -> Job:
        return self.ticket.job

    @property
    def admitted(self) -> Admitted:
        return self.ticket.admitted

    def cancel(self) -> None:
        self.ticket.cancel()

    async def events(self) -> AsyncIterator[Event]:
        async for event in self.ticket.events():
            if outputs := [output for output in self._outputs(event) if output.name in self.wanted]:
                await self.reader.answered(partial(self.sender.send, outputs, final=False))
            yield event

    def _outputs(self, event: Event) -> list[Given]:
        match event:
            case Progress():
                return [_progress(event.image, event.call, event.calls)]
            case Preview():
                preview = Given(PREVIEW, BYTES, [base64_text(event.data).encode()], True)
                return [_progress(event.image, event.call, self.job.calls), preview]
        return []


def _progress(image: int, call: int, calls: int) -> Given:
    return Given(PROGRESS, OF_PROGRESS[PROGRESS].datatype, np.array([image, call, calls], np.int64), True)
