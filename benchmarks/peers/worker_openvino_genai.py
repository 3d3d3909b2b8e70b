"""Worker for OpenVINO GenAI, with models converted by optimum-intel."""

from typing import Any

import numpy as np
import openvino
import openvino_genai
from PIL import Image

from .protocol import Job, serve, versions

_loaded: dict[str, Any] = {}


class GivenLatents(openvino_genai.Generator):  # type: ignore[misc]
    """Returns the given initial latents where the pipeline draws noise."""

    def __init__(self, latents: Any) -> None:
        super().__init__()
        self.latents = latents

    def next(self) -> float:
        """One value; deterministic schedulers never call it."""
        raise ValueError("the pipeline draws noise beyond the initial latents")

    def randn_tensor(self, shape: Any) -> Any:
        """The initial latents."""
        return openvino.Tensor(self.latents.reshape(tuple(shape)))


def load(job: Job) -> dict[str, Any]:
    """Open a converted model with the scheduler's config."""
    pipe = openvino_genai.Text2ImagePipeline(job["model"], job["options"].get("device", "CPU"))
    pipe.set_scheduler(openvino_genai.Scheduler.from_config(job["scheduler"]))
    _loaded["pipe"] = pipe
    return {"versions": versions("openvino-genai", "openvino")}


def draw(job: Job) -> tuple[Any, int]:
    """Draw one picture."""
    pipe = _loaded["pipe"]
    found = pipe.generate(
        job["prompt"],
        num_inference_steps=job["steps"],
        guidance_scale=job["guidance_scale"],
        height=job["size"],
        width=job["size"],
        generator=GivenLatents(np.load(job["latents"])),
    )
    calls = len(pipe.get_performance_metrics().raw_metrics.unet_inference_durations)
    return Image.fromarray(found.data[0]), calls


serve(load, draw)
