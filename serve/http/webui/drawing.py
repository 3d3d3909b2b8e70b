"""The routes that draw, txt2img and img2img, and those that say how far a call is and stop it."""

import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse

from latentrt.runtime.errors import InputError
from latentrt.runtime.request import Call
from latentrt.serve.http.bodies import CallReader
from latentrt.serve.http.errors import ApiError
from latentrt.serve.http.following import Drawn, submitted, unless_gone
from latentrt.serve.http.given_files import base64_text
from latentrt.serve.http.keys import Key
from latentrt.serve.messages import Job, Previews
from latentrt.serve.metrics import Metrics
from latentrt.serve.served_model import ServedModel
from latentrt.serve.service import Service

from .answers import PicturesAnswer, ProgressAnswer, ProgressState, TaskAnswer, info_text
from .chosen import ChosenModels
from .fields import body_schema
from .route import WebUiRoute, answers
from .second_pass import first_job, second_job
from .tasks import Task, Tasks
from .translation import Asked, translated

PREVIEWS = 4  # of each picture
TaskId = Annotated[str | None, Query(max_length=128, description="the client's name for the call; default: all")]
_TASK_SCHEMA = {
    "type": "object",
    "properties": {
        "id_task": {"type": "string", "description": "force_task_id of a call"},
        "id_live_preview": {"type": "integer", "default": -1, "description": "the last one that is known"},
        "live_preview": {"type": "boolean", "default": True},
    },
    "required": ["id_task"],
}


class DrawingRoutes:
    """The routes; FastAPI reads their annotations."""

    def __init__(
        self,
        service: Service,
        reader: CallReader,
        sender: Callable[[Request], Key],
        metrics: Metrics,
        chosen: ChosenModels,
        pixels: int,
    ) -> None:
        """`pixels`: of a picture that a client sends."""
        self._service, self._reader, self._sender, self._metrics = service, reader, sender, metrics
        self._chosen, self._pixels = chosen, pixels
        self._tasks = Tasks()

    async def txt2img(self, request: Request) -> Response:
        """Draw pictures from a text. Besides the web UI's fields, all options of latentrt are allowed."""
        return await self._draw(request, begins=False)

    async def img2img(self, request: Request) -> Response:
        """Draw a picture anew, or the part of it where a mask is light."""
        return await self._draw(request, begins=True)

    async def _draw(self, request: Request, *, begins: bool) -> Response:
        key = self._sender(request)
        find = partial(self._model, key.name)

        def read(body: dict[str, Any]) -> tuple[Asked, Job, Call]:
            asked = translated(body, find, pixels=self._pixels, begins=begins)
            manifest = asked.model.bundle.manifest
            cheap = manifest.model.latent_rgb is not None or "preview_decoder" in manifest.graphs
            wanted = asked.previews and (cheap or "preview_method" in asked.call)  # those by the VAE cost a lot
            previews = Previews("auto", PREVIEWS) if wanted else None
            job, call = self._reader.passes(
                asked.call, key, previews=previews, pictures=asked.pictures, words=asked.words
            )
            return asked, replace(job, output=replace(job.output, text=asked.text)), call

        asked, job, call = await self._reader.read(request, read)
        twice = call.second is not None and not call.refines
        first = first_job(job, call) if twice else job
        ticket = await submitted(self._service, first, self._metrics)
        with self._tasks.following(ticket, asked.task) as task:
            drawing = self._drawn_twice(task, job, call, asked.model) if twice else task.drawn()
            result = await unless_gone(request, drawing)
        return await self._reader.answered(lambda: _answer(asked, result))

    async def _drawn_twice(self, task: Task, job: Job, call: Call, model: ServedModel) -> Drawn:
        """The first pass, then a second job for the larger one; what is interrupted before has no picture."""
        assert call.second is not None
        task.after = len(call.second.plan)
        first = await task.drawn()
        elapsed = time.monotonic() - task.began
        second = await self._reader.in_thread(lambda: second_job(job, call, first.pictures, model, elapsed))
        if task.interrupted or task.skipped:
            raise ApiError(409, "interrupted before a picture was finished", "cancelled", retry=False)
        task.go_on(await submitted(self._service, second, self._metrics))
        return await task.drawn()

    def _model(self, client: str, name: str | None) -> ServedModel:
        return self._reader.model(name if name is not None else self._chosen.of(client))

    async def progress(
        self, request: Request, skip_current_image: bool = False, force_task_id: TaskId = None
    ) -> ProgressAnswer:
        """How far the caller's oldest call is, or the one with an id."""
        tasks = self._tasks.of(self._sender(request).name, force_task_id)
        if not tasks:
            return ProgressAnswer()
        task = tasks[0]
        image = None
        if task.preview is not None and not skip_current_image:
            image = base64_text(task.preview.data)
        return ProgressAnswer(
            progress=task.progress, eta_relative=task.seconds_left, state=_state(task), current_image=image
        )

    async def task_progress(self, request: Request) -> TaskAnswer:
        """How far the caller's call with `force_task_id` is."""
        client = self._sender(request).name
        name, known, wanted = await self._reader.read(request, _task_asked)
        tasks = self._tasks.of(client, name)
        if not tasks:
            return TaskAnswer(active=False, queued=False, completed=self._tasks.has_ended(client, name))
        task = tasks[0]
        queued = task.started is None
        answer = TaskAnswer(
            active=not queued, queued=queued, completed=False, progress=task.progress, eta=task.seconds_left
        )
        if wanted and task.preview is not None and task.previews != known:
            answer.live_preview = f"data:image/{task.preview.format};base64,{base64_text(task.preview.data)}"
        answer.id_live_preview = task.previews
        return answer

    async def interrupt(self, request: Request, force_task_id: TaskId = None) -> dict[str, str]:
        """Stop the caller's calls, or the one with an id; they are answered with the pictures that are finished."""
        self._tasks.interrupt(self._sender(request).name, force_task_id)
        return {}

    async def skip(self, request: Request, force_task_id: TaskId = None) -> dict[str, str]:
        """Stop the caller's oldest call, or the one with an id; it is answered with the pictures that are finished."""
        self._tasks.skip(self._sender(request).name, force_task_id)
        return {}

    def router(self) -> APIRouter:
        """The routes."""
        router = APIRouter(tags=["web UI"], route_class=WebUiRoute)
        for name, route in (("txt2img", self.txt2img), ("img2img", self.img2img)):
            schema = body_schema(pictures=name == "img2img")
            router.post(
                f"/sdapi/v1/{name}",
                response_model=PicturesAnswer,
                responses=answers(work=True),
                openapi_extra={"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}},
                name=name,
            )(route)
        router.get("/sdapi/v1/progress", responses=answers(), name="progress")(self.progress)
        router.post("/sdapi/v1/interrupt", responses=answers(), name="interrupt")(self.interrupt)
        router.post("/sdapi/v1/skip", responses=answers(), name="skip")(self.skip)
        content = {"application/json": {"schema": _TASK_SCHEMA}}
        router.post(
            "/internal/progress",
            responses=answers(body=True),
            openapi_extra={"requestBody": {"required": True, "content": content}},
            name="task_progress",
        )(self.task_progress)
        return router


def _answer(asked: Asked, result: Drawn) -> Response:
    files = [picture.data for picture in result.pictures] if asked.send_images else []
    if asked.put_back is not None and files:
        files = asked.put_back(files, result.job.output)
    content = {
        "images": [base64_text(file) for file in files],
        "parameters": asked.parameters,
        "info": info_text(asked.model, result.job, asked.prompt, result.pictures),
    }
    return JSONResponse(content, headers={"Server-Timing": result.server_timing()})


def _state(task: Task) -> ProgressState:
    return ProgressState(
        skipped=task.skipped,
        interrupted=task.interrupted,
        job=task.id,
        job_count=task.job.images,
        job_timestamp=datetime.fromtimestamp(task.submitted).strftime("%Y%m%d%H%M%S"),
        job_no=len(task.pictures),
        sampling_step=task.step,
        sampling_steps=task.steps,
    )


def _task_asked(body: dict[str, Any]) -> tuple[str, int, bool]:
    """The id of a call, the number of the last preview that is known, and whether a new one is wanted."""
    name, known, wanted = body.get("id_task"), body.get("id_live_preview", -1), body.get("live_preview", True)
    if not isinstance(name, str) or len(name) > 128:
        raise ApiError(400, "id_task: expected the force_task_id of a call", "invalid_request", param="id_task")
    if isinstance(known, bool) or not isinstance(known, int) or not isinstance(wanted, bool):
        raise InputError("id_live_preview: expected an integer, and live_preview: true or false")
    return name, known, wanted
