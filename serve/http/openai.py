"""OpenAI's Images API: models, generations, edits, and both as streams of partial images."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from latentrt.serve.messages import Done, Event, Failed, Job, Picture, Preview
from latentrt.serve.metrics import Metrics
from latentrt.serve.served_model import ServedModel, shown_size
from latentrt.serve.service import Service

from .bodies import CallReader, now
from .errors import EVERYWHERE, OF_WORK, body_of, errors, failed
from .following import Drawn, EventResponse, drawn, submitted, unless_gone
from .forms import EditForm, edit_schema
from .given_files import base64_text
from .idempotency import Idempotency
from .keys import Key
from .openai_fields import Asked, body_schema, translated


class ControlAnswer(BaseModel):
    """A control bundle of a model."""

    name: str
    kind: str = Field(description="controlnet, controlnet-union, t2i-adapter, ip-adapter or image-encoder")


class ModelAnswer(BaseModel):
    """A model of the server."""

    id: str
    object: str = "model"
    created: int = 0
    owned_by: str = "latentrt"
    sizes: list[str] = Field(description="the sizes that it draws, its own first")
    loras: list[str] = Field(description="the LoRAs that may be named")
    controls: list[ControlAnswer] = Field(description="the ControlNets and adapters that may be used")
    schedulers: list[str] = Field(description="short names of schedulers; options may follow, as in euler:eta=0.5")
    defaults: dict[str, int | float] = Field(description="what calls get that leave these options out")
    limits: dict[str, int] = Field(description="what one call may ask for; `pixels` of a picture that is sent")
    aliases: list[str] = Field(description="its other names")
    ready: bool


class ModelList(BaseModel):
    """The models of the server, the default one first."""

    object: str = "list"
    data: list[ModelAnswer]


class ImageAnswer(BaseModel):
    """A picture."""

    b64_json: str
    seed: int
    revised_prompt: str | None = None


class Usage(BaseModel):
    """What was used: tokens of the texts; `output_tokens` counts UNet calls."""

    input_tokens: int
    input_tokens_details: dict[str, int]
    output_tokens: int
    total_tokens: int


class ImagesAnswer(BaseModel):
    """The pictures of a request."""

    created: int
    background: str
    output_format: str
    quality: str
    size: str
    data: list[ImageAnswer]
    usage: Usage


@dataclass(frozen=True, slots=True)
class _Call:
    """A checked request: how it is answered, its job, tokens of its texts, and the hash of its body."""

    asked: Asked
    job: Job
    tokens: int
    digest: bytes

    def facts(self) -> dict[str, Any]:
        """What answers repeat of the request."""
        request = self.job.request
        return {
            "background": "opaque",
            "output_format": self.job.output.format,
            "quality": self.asked.quality,
            "size": shown_size((request.width, request.height)),
        }

    def usage(self, images: int) -> dict[str, Any]:
        """Of so many of its images."""
        calls = self.job.calls * images
        details = {"image_tokens": 0, "text_tokens": self.tokens}
        return {
            "input_tokens": self.tokens,
            "input_tokens_details": details,
            "output_tokens": calls,
            "total_tokens": self.tokens + calls,
        }


class OpenAIRoutes:
    """The routes; FastAPI reads their annotations."""

    def __init__(
        self, service: Service, reader: CallReader, metrics: Metrics, idempotency: Idempotency, picture_pixels: int
    ) -> None:
        self._service, self._reader, self._metrics, self._idempotency = service, reader, metrics, idempotency
        self._picture_pixels = picture_pixels

    async def models(self) -> ModelList:
        """The models, their sizes and LoRAs."""
        return ModelList(data=[self._model(model) for model in self._service.models.values()])

    async def model(self, model: str) -> ModelAnswer:
        """One model; aliases are known, too."""
        return self._model(self._reader.model(model))

    def _model(self, model: ServedModel) -> ModelAnswer:
        sizes = [shown_size(size) for size in model.sizes]
        return ModelAnswer(
            id=model.name,
            sizes=sizes,
            loras=model.lora_names(),
            controls=[ControlAnswer(name=name, kind=control.kind) for name, control in model.controls.items()],
            schedulers=model.scheduler_names(),
            defaults=model.defaults(),
            limits={**asdict(model.limits), "pixels": self._picture_pixels},
            aliases=self._reader.other_names(model),
            ready=self._service.ready(model.name),
        )

    async def generations(self, request: Request, key: Key, idempotency_key: str | None) -> Response:
        """Draw pictures from a text."""

        def read(body: dict[str, Any]) -> _Call:
            model = self._reader.model(body.get("model"))
            asked = translated(body, model)
            job = self._reader.job(asked.call, key, previews=asked.previews, words=asked.words)
            return _Call(asked, job, model.tokens(job.request), hashlib.sha256(data).digest())

        data = await request.body()
        call = await self._reader.read(request, read)
        return await self._answer(request, call, "image_generation", idempotency_key)

    async def edits(self, request: Request, key: Key, idempotency_key: str | None) -> Response:
        """Draw a picture anew, or the part of it where a mask is transparent."""

        def read() -> _Call:
            image, mask = form.pictures(self._picture_pixels)
            fields = form.fields()
            model = self._reader.model(fields.get("model"))
            asked = translated(fields, model, picture_size=image.size)
            job = self._reader.job(asked.call, key, previews=asked.previews, pictures=(image, mask), words=asked.words)
            return _Call(asked, job, model.tokens(job.request), form.digest())

        form = await EditForm.read(request)
        call = await self._reader.in_thread(read)
        return await self._answer(request, call, "image_edit", idempotency_key)

    async def _answer(self, request: Request, call: _Call, kind: str, idempotency_key: str | None) -> Response:
        job = call.job
        if call.asked.stream:
            ticket = await submitted(self._service, job, self._metrics)
            event = _Stream(kind, call).event
            return EventResponse(ticket, lambda one: self._reader.answered(lambda: event(one)))

        async def draw() -> Response:
            ticket = await submitted(self._service, job, self._metrics)
            work = drawn(ticket)
            result = await (work if idempotency_key else unless_gone(request, work))
            return await self._reader.answered(lambda: _answer_of(call, result))

        if not idempotency_key:
            return await draw()
        return await self._idempotency.answer(job.client, idempotency_key, call.digest, draw)


def _answer_of(call: _Call, result: Drawn) -> Response:
    pictures = [{"b64_json": base64_text(p.data), "seed": p.seed, "revised_prompt": None} for p in result.pictures]
    content = {"created": now(), **call.facts(), "data": pictures, "usage": call.usage(len(pictures))}
    return JSONResponse(content, headers={"Server-Timing": result.server_timing()})


class _Stream:
    """The events of a job as server-sent events of OpenAI's API."""

    def __init__(self, kind: str, call: _Call) -> None:
        self._kind, self._call = kind, call
        self._facts = call.facts()
        self._partial = 0

    def event(self, event: Event) -> str | None:
        """An event, or None for those that this API does not have."""
        match event:
            case Preview():
                number, self._partial = self._partial, self._partial + 1
                fields = {"partial_image_index": number, **self._facts, "output_format": event.format}
                return self._sent("partial_image", event.data, fields)
            case Picture():
                fields = {**self._facts, "usage": self._call.usage(1), "seed": event.seed}
                return self._sent("completed", event.data, fields)
            case Done():
                return "data: [DONE]\n\n"
            case Failed():  # clients raise it
                return f"event: error\ndata: {json.dumps(body_of(failed(event)))}\n\n"
        return None

    def _sent(self, name: str, data: bytes, fields: dict[str, Any]) -> str:
        kind = f"{self._kind}.{name}"
        content = {"type": kind, "b64_json": base64_text(data), "created_at": now(), **fields}
        return f"event: {kind}\ndata: {json.dumps(content)}\n\n"


def openai_router(routes: OpenAIRoutes, key: Callable[..., Any]) -> APIRouter:
    """The routes under /v1. `key`: the dependency that says who sends a request."""
    router = APIRouter(prefix="/v1", tags=["OpenAI Images"])
    sender = Annotated[Key, Depends(key)]
    once = Annotated[
        str | None, Header(max_length=256, description="the same answer for the same key; not for streams")
    ]
    stream = {"text/event-stream": {"schema": {"type": "string"}}}
    answers: dict[int | str, dict[str, Any]] = {
        200: {
            "model": ImagesAnswer,
            "content": stream,
            "description": "the pictures, or with `stream` their events",
            "headers": {
                "Server-Timing": {
                    "schema": {"type": "string"},
                    "description": "milliseconds of queue, encode, denoise and decode; not of streams",
                }
            },
        },
        **errors({**EVERYWHERE, **OF_WORK}),
    }

    @router.get("/models", responses=errors(EVERYWHERE), name="list_models")
    async def models(_: sender) -> ModelList:
        """The models of the server, their sizes and LoRAs; the first one is the default."""
        return await routes.models()

    @router.get("/models/{model}", responses=errors(EVERYWHERE), name="get_model")
    async def model(model: str, _: sender) -> ModelAnswer:
        """One model, by its name or alias."""
        return await routes.model(model)

    json_body = {"required": True, "content": {"application/json": {"schema": body_schema()}}}

    @router.post(
        "/images/generations", responses=answers, openapi_extra={"requestBody": json_body}, name="generate_images"
    )
    async def generations(request: Request, key: sender, idempotency_key: once = None) -> Response:
        """Draw pictures from a text. Besides OpenAI's fields, all options of latentrt are allowed."""
        return await routes.generations(request, key, idempotency_key)

    form_body = {"required": True, "content": {"multipart/form-data": {"schema": edit_schema()}}}

    @router.post("/images/edits", responses=answers, openapi_extra={"requestBody": form_body}, name="edit_images")
    async def edits(request: Request, key: sender, idempotency_key: once = None) -> Response:
        """Draw a picture anew, or the part of it where the mask is transparent (without transparency: light)."""
        return await routes.edits(request, key, idempotency_key)

    return router
