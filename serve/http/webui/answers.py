"""What the routes of the web UI's API answer: their models, and the texts that clients read pictures' settings from."""

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from latentrt.runtime.request import LoraFile, Source, png_text
from latentrt.runtime.request.guidance import PLUS_PLUS, is_plus_plus
from latentrt.runtime.request.web_ui_text import settings_of_web_ui
from latentrt.serve.http.errors import ErrorFields
from latentrt.serve.messages import Job, Picture
from latentrt.serve.served_model import ServedModel


class WebUiError(BaseModel):
    """An error: `detail` is what clients of web UIs read, `error` has OpenAI's form; limits of bodies have only it."""

    error: ErrorFields
    detail: str | None = None


class PicturesAnswer(BaseModel):
    """The pictures of a call."""

    images: list[str] = Field(description="base64")
    parameters: dict[str, Any] = Field(description="what the client gave, without pictures")
    info: str = Field(description="JSON: seeds, prompts, settings, and `infotexts`")


class SamplerItem(BaseModel):
    """A sampler; `options` has the schedule type that is its own."""

    name: str
    aliases: list[str]
    options: dict[str, str]


class SchedulerItem(BaseModel):
    """A schedule type."""

    name: str
    label: str
    aliases: list[str] | None
    default_rho: float = -1.0
    need_inner_model: bool = False


class ModelItem(BaseModel):
    """A model; its files stay unknown."""

    model_config = ConfigDict(protected_namespaces=())

    title: str
    model_name: str
    hash: str
    sha256: str
    filename: str
    config: str | None = None


class LoraItem(BaseModel):
    """A LoRA, for `<lora:NAME:WEIGHT>` in prompts; its file stays unknown."""

    name: str
    alias: str
    path: str
    metadata: dict[str, Any] = {}


class UpscalerItem(BaseModel):
    """What enlarges pictures for a second pass; "None" is Lanczos."""

    model_config = ConfigDict(protected_namespaces=())

    name: str
    model_name: str | None = None
    model_path: str | None = None
    model_url: str | None = None
    scale: float = 1.0


class ProgressState(BaseModel):
    """The call that is drawn; `job_count` is 0 where there is none, otherwise how many pictures it has."""

    skipped: bool = False
    interrupted: bool = False
    stopping_generation: bool = False
    job: str = ""
    job_count: int = 0
    job_timestamp: str = "0"
    job_no: int = Field(default=0, description="pictures that are finished")
    sampling_step: int = 0
    sampling_steps: int = 0


class ProgressAnswer(BaseModel):
    """How far the caller's own call is: the one that is named, or the oldest."""

    progress: float = Field(default=0.0, ge=0, le=1)
    eta_relative: float = Field(default=0.0, description="seconds until it is finished, about")
    state: ProgressState = ProgressState()
    current_image: str | None = Field(default=None, description="base64 of an unfinished picture")
    textinfo: str | None = None


class TaskAnswer(BaseModel):
    """How far a call with `force_task_id` is."""

    active: bool
    queued: bool
    completed: bool
    progress: float | None = None
    eta: float | None = None
    live_preview: str | None = Field(default=None, description="data URL of an unfinished picture, if it is a new one")
    id_live_preview: int | None = None
    textinfo: str | None = None


class InfoAnswer(BaseModel):
    """The text of a picture."""

    info: str = Field(description='as web UIs write it; "" for a picture without one')
    items: dict[str, str] = Field(description="all of its texts")
    parameters: dict[str, str] = Field(description="the settings in `info`")


class MemoryAnswer(BaseModel):
    """Bytes of memory."""

    ram: dict[str, float]
    cuda: dict[str, str]


def title_of(model: ServedModel) -> str:
    """The name of a model as `sd_model_checkpoint` has it: with the beginning of its hash."""
    return f"{model.name} [{model.bundle.manifest.checkpoint.sha256[:10]}]"


def info_text(model: ServedModel, job: Job, prompt: str, pictures: Sequence[Picture]) -> str:
    """The answer's `info`. `prompt`: as the client gave it, with the names of LoRAs."""
    request, checkpoint = job.request, model.bundle.manifest.checkpoint
    loras = tuple(LoraFile(Path(name), "", weight) for name, weight in job.loras)
    refiner = None if model.refiner is None else model.refiner.bundle.manifest.checkpoint
    source = Source(checkpoint.name, checkpoint.sha256, loras, version("latentrt"), private=True, refiner=refiner)
    texts = [png_text(request, picture.image, source)["parameters"] for picture in pictures]
    settings = settings_of_web_ui(texts[0]) if texts else {}
    negative = settings.get("Negative prompt", "")
    seeds = [picture.seed for picture in pictures]
    return json.dumps(
        {
            "prompt": prompt,
            "all_prompts": [prompt] * len(seeds),
            "negative_prompt": negative,
            "all_negative_prompts": [negative] * len(seeds),
            "seed": seeds[0] if seeds else -1,
            "all_seeds": seeds,
            "subseed": -1,
            "all_subseeds": [-1] * len(seeds),
            "subseed_strength": 0,
            "width": request.width,
            "height": request.height,
            "sampler_name": settings.get("Sampler"),
            "cfg_scale": request.guidance_scale * (PLUS_PLUS if is_plus_plus(request.plan) else 1),
            "steps": request.num_inference_steps,
            "batch_size": job.images,
            "restore_faces": False,
            "face_restoration_model": None,
            "sd_model_name": model.name,
            "sd_model_hash": checkpoint.sha256[:10],
            "sd_vae_name": None,
            "sd_vae_hash": None,
            "seed_resize_from_w": -1,
            "seed_resize_from_h": -1,
            "denoising_strength": request.strength,
            "extra_generation_params": _extra(settings),
            "index_of_first_image": 0,
            "infotexts": texts,
            "styles": [],
            "clip_skip": (request.options["clip_skip"] or 0) + 1,
            "is_using_inpainting_conditioning": False,
            "version": f"latentrt {source.version}",
        }
    )


def _extra(settings: Mapping[str, str]) -> dict[str, str]:
    return {label: settings[label] for label in ("Schedule type", "RNG", "Eta", "ENSD") if label in settings}
