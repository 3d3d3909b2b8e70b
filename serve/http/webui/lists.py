"""The routes that tell what there is, options, and texts of pictures."""

import os
from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Request

from latentrt.runtime.errors import InputError
from latentrt.runtime.latents import enlarges_latents
from latentrt.runtime.request.web_ui_text import UPSCALERS, settings_of_web_ui
from latentrt.serve.http.bodies import CallReader
from latentrt.serve.http.errors import ApiError
from latentrt.serve.http.given_files import bytes_of_base64, picture
from latentrt.serve.http.keys import Key
from latentrt.serve.served_model import ServedModel
from latentrt.serve.service import Service

from .answers import (
    InfoAnswer,
    LoraItem,
    MemoryAnswer,
    ModelItem,
    SamplerItem,
    SchedulerItem,
    UpscalerItem,
    title_of,
)
from .chosen import ChosenModels
from .fields import DEFAULT_SETTINGS, SETTINGS, read_settings
from .names import samplers, schedule_types
from .route import WebUiRoute, answers
from .translation import model_name

TEXT_CHARACTERS = 1_000_000  # of one text of a picture that are told
# What the web UI has and this server does not: clients ask for the lists, and go on where these are empty.
EMPTY: dict[str, Any] = {
    "sd-vae": [],
    "latent-upscale-modes": [{"name": theirs} for theirs, ours in UPSCALERS.items() if enlarges_latents(ours)],
    "embeddings": {"loaded": {}, "skipped": {}},
    "hypernetworks": [],
    "face-restorers": [],
    "realesrgan-models": [],
    "prompt-styles": [],
    "scripts": {"txt2img": [], "img2img": []},
    "script-info": [],
}
_PICTURE = {
    "type": "object",
    "properties": {"image": {"type": "string", "description": "base64 of a picture, or a data URL"}},
    "required": ["image"],
}


class ListRoutes:
    """The routes; FastAPI reads their annotations."""

    def __init__(
        self,
        service: Service,
        reader: CallReader,
        sender: Callable[[Request], Key],
        chosen: ChosenModels,
        pixels: int,
    ) -> None:
        """`pixels`: of a picture that a client sends."""
        self._service, self._reader, self._sender = service, reader, sender
        self._chosen, self._pixels = chosen, pixels

    async def models(self, request: Request) -> list[ModelItem]:
        """The models; titles are what `sd_model_checkpoint` takes."""
        self._sender(request)
        return [
            ModelItem(
                title=title_of(model),
                model_name=model.name,
                hash=model.bundle.manifest.checkpoint.sha256[:10],
                sha256=model.bundle.manifest.checkpoint.sha256,
                filename=model.name,
            )
            for model in self._service.models.values()
        ]

    async def samplers(self, request: Request) -> list[SamplerItem]:
        """The samplers."""
        self._sender(request)
        return samplers()

    async def schedulers(self, request: Request) -> list[SchedulerItem]:
        """The schedule types."""
        self._sender(request)
        return schedule_types()

    async def loras(self, request: Request) -> list[LoraItem]:
        """The LoRAs of the caller's model."""
        model = self._model(request)
        names = await self._reader.in_thread(model.lora_names)
        return [LoraItem(name=name, alias=name, path=name) for name in names]

    async def upscalers(self, request: Request) -> list[UpscalerItem]:
        """Those of pictures, for the second pass of a call."""
        self._sender(request)
        return [UpscalerItem(name=theirs) for theirs, ours in UPSCALERS.items() if not enlarges_latents(ours)]

    async def options(self, request: Request) -> dict[str, Any]:
        """The settings that calls are drawn with."""
        return self._options(self._model(request))

    async def set_options(self, request: Request) -> None:
        """Choose the model of the caller's calls. Other settings belong into a call's `override_settings`."""
        key = self._sender(request)
        model = self._model(request)
        chosen = await self._reader.read(request, lambda body: self._chosen_in(body, model))
        self._chosen.choose(key.name, chosen.name)

    def _chosen_in(self, body: dict[str, Any], model: ServedModel) -> ServedModel:
        """The model that settings name. Those that stay as they are may stand beside it, as some clients send all."""
        now = self._options(model)
        changed = {name: value for name, value in body.items() if name not in now or now[name] != value}
        settings = read_settings(changed, model.bundle.manifest, where="")
        name = settings.pop("sd_model_checkpoint", None)
        if settings:
            other = min(settings)
            text = f"{other} is not kept: pass it in override_settings of each call"
            raise ApiError(400, text, "unsupported_value", param=other)
        return model if name is None else self._reader.model(model_name(name))

    def _options(self, model: ServedModel) -> dict[str, Any]:
        checkpoint = model.bundle.manifest.checkpoint
        return {
            "sd_model_checkpoint": title_of(model),
            "sd_checkpoint_hash": checkpoint.sha256,
            **DEFAULT_SETTINGS,
        }

    def _model(self, request: Request) -> ServedModel:
        return self._reader.model(self._chosen.of(self._sender(request).name))

    async def flags(self, request: Request) -> dict[str, bool]:
        """The flags of the web UI that this server has."""
        self._sender(request)
        return {"api": True, "nowebui": True}

    async def memory(self, request: Request) -> MemoryAnswer:
        """Bytes of the machine's memory, and what the devices' processes use."""
        self._sender(request)
        used = float(sum(load.memory or 0 for load in self._service.loads()))
        page = os.sysconf("SC_PAGE_SIZE")
        free, total = (float(page * os.sysconf(name)) for name in ("SC_AVPHYS_PAGES", "SC_PHYS_PAGES"))
        return MemoryAnswer(
            ram={"free": free, "used": used, "total": total}, cuda={"error": "see /metrics and NVIDIA's exporter"}
        )

    async def info(self, request: Request) -> InfoAnswer:
        """The text that a picture holds: what it was drawn from."""
        self._sender(request)
        return await self._reader.read(request, self._info)

    def _info(self, body: dict[str, Any]) -> InfoAnswer:
        if not isinstance(body.get("image"), str):
            raise InputError("image: expected base64 of a picture, or a data URL")
        image = picture("image", bytes_of_base64("image", body["image"]), pixels=self._pixels)
        items = {
            str(name): str(text)[:TEXT_CHARACTERS].encode(errors="replace").decode()
            for name, text in getattr(image, "text", image.info).items()
            if isinstance(text, str)
        }
        text = items.get("parameters", "")
        return InfoAnswer(info=text, items=items, parameters=settings_of_web_ui(text))

    async def refresh(self, request: Request) -> None:
        """Nothing: lists are read anew each time."""
        self._sender(request)

    def router(self) -> APIRouter:
        """The routes."""
        router = APIRouter(prefix="/sdapi/v1", tags=["web UI"], route_class=WebUiRoute)
        told: dict[str, Callable[..., Any]] = {
            "sd-models": self.models,
            "samplers": self.samplers,
            "schedulers": self.schedulers,
            "loras": self.loras,
            "upscalers": self.upscalers,
            "options": self.options,
            "cmd-flags": self.flags,
            "memory": self.memory,
        }
        for name, route in told.items():
            router.get(f"/{name}", responses=answers(), name=name)(route)
        for name, empty in EMPTY.items():
            router.get(f"/{name}", responses=answers(), name=name)(self._empty(empty))
        for name in ("refresh-loras", "refresh-checkpoints", "refresh-vae"):
            router.post(f"/{name}", responses=answers(), name=name)(self.refresh)
        settings = {
            "type": "object",
            "properties": {name: {"description": row.text, **row.kind.schema} for name, row in SETTINGS.items()},
        }
        for name, route, schema in (("options", self.set_options, settings), ("png-info", self.info, _PICTURE)):
            body = {"required": True, "content": {"application/json": {"schema": schema}}}
            router.post(
                f"/{name}",
                responses=answers(body=True),
                openapi_extra={"requestBody": body},
                name=f"post-{name}",
            )(route)
        return router

    def _empty(self, content: Any) -> Callable[..., Any]:
        async def empty(request: Request) -> Any:
            """Nothing: the web UI has it, and this server does not."""
            self._sender(request)
            return content

        return empty
