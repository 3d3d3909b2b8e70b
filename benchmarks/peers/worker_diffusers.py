"""Worker for diffusers and optimum-onnx, whose pipelines have the same interface.

Options: `optimum` loads ONNX models with ORTStableDiffusionPipeline; `dtype`, `device`, `channels_last` and `compile`
are the optimizations that diffusers documents.
"""

import json
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch

from .protocol import Job, serve, versions

_loaded: dict[str, Any] = {}


def load(job: Job) -> dict[str, Any]:
    """Open a checkpoint in diffusers' format, or optimum's export of it."""
    options = job["options"]
    device = options.get("device", "cpu")
    if options.get("optimum"):
        from optimum.onnxruntime import ORTStableDiffusionPipeline

        provider = "CUDAExecutionProvider" if device == "cuda" else "CPUExecutionProvider"
        pipe = ORTStableDiffusionPipeline.from_pretrained(job["model"], provider=provider)
    else:
        dtype = getattr(torch, options.get("dtype", "float32"))
        pipe = diffusers.StableDiffusionPipeline.from_pretrained(job["model"], torch_dtype=dtype).to(device)
    if options.get("channels_last"):
        pipe.unet.to(memory_format=torch.channels_last)
        pipe.vae.to(memory_format=torch.channels_last)
    if options.get("compile"):
        pipe.unet = torch.compile(pipe.unet, fullgraph=True)
        pipe.vae.decode = torch.compile(pipe.vae.decode, fullgraph=True)
    config = json.loads(Path(job["scheduler"]).read_text(encoding="utf-8"))
    pipe.scheduler = getattr(diffusers, config["_class_name"]).from_config(config)
    pipe.set_progress_bar_config(disable=True)
    _loaded.update(pipe=pipe, device=device)
    packages = ("diffusers", "torch", "transformers", "optimum", "optimum-onnx", "onnxruntime", "onnxruntime-gpu")
    return {"threads": torch.get_num_threads(), "versions": versions(*packages)}


def draw(job: Job) -> tuple[Any, int]:
    """Draw one picture."""
    pipe = _loaded["pipe"]
    dtype = pipe.unet.dtype
    result = pipe(
        job["prompt"],
        num_inference_steps=job["steps"],
        guidance_scale=job["guidance_scale"],
        height=job["size"],
        width=job["size"],
        latents=torch.from_numpy(np.load(job["latents"])).to(_loaded["device"], dtype),
    )
    return result.images[0], len(pipe.scheduler.timesteps)


serve(load, draw)
