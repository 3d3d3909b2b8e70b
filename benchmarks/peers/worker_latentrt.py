"""Worker for latentrt; its environment has latentrt and one backend."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from latentrt.runtime import Pipeline, Plan

from .protocol import Job, serve, versions

_loaded: dict[str, Any] = {}


def load(job: Job) -> dict[str, Any]:
    """Open a bundle with the backend and device of the options."""
    pipe = Pipeline.load(job["model"], **job["options"])
    _loaded.update(pipe=pipe, scheduler=json.loads(Path(job["scheduler"]).read_text(encoding="utf-8")))
    return {
        "backend": str(pipe.backend),
        "versions": versions("latentrt", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "tensorrt-rtx"),
    }


def draw(job: Job) -> tuple[Any, int]:
    """Draw one picture."""
    result = _loaded["pipe"](
        job["prompt"],
        num_inference_steps=job["steps"],
        guidance_scale=job["guidance_scale"],
        height=job["size"],
        width=job["size"],
        scheduler=_loaded["scheduler"],
        latents=np.load(job["latents"]),
    )
    return result.images[0], len(Plan.from_config(_loaded["scheduler"], job["steps"]).timesteps)


serve(load, draw)
