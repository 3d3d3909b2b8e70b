"""Worker for diffusers and optimum-onnx, whose pipelines have the same interface.

Options: `optimum` loads ONNX models with ORTStableDiffusionPipeline; `dtype`, `device`, `channels_last` and `compile`
are the optimizations that diffusers documents. `torchao` quantizes the linear layers of the UNet: "int8" with
activations, "int8 weights" without. `freezing` lets the compiler lay weights out for its kernels, without which int8
products on a CPU are not fused.
"""

import json
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch

from .protocol import Job, guided, serve, timed, versions

_loaded: dict[str, Any] = {}


def load(job: Job) -> dict[str, Any]:
    """Open a checkpoint in diffusers' format, or optimum's export of it."""
    options = job["options"]
    device, dtype = options.get("device", "cpu"), getattr(torch, options.get("dtype", "float32"))
    if job.get("part") == "unet" and not options.get("optimum"):
        pipe = None
        unet = diffusers.UNet2DConditionModel.from_pretrained(job["model"], subfolder="unet", torch_dtype=dtype)
        unet.to(device)
    else:
        pipe = _pipeline(job, device, dtype)
        unet = pipe.unet
    if "torchao" in options:
        _quantize(unet, options["torchao"])
    if options.get("channels_last"):
        unet.to(memory_format=torch.channels_last)
    if options.get("compile"):
        torch._inductor.config.freezing = bool(options.get("freezing"))
        unet = torch.compile(unet, fullgraph=True)
    if pipe is not None:
        _finish(pipe, unet, job)
    _loaded.update(pipe=pipe, unet=unet, device=device)
    packages = ("diffusers", "torch", "torchao", "transformers", "optimum", "optimum-onnx", "onnxruntime")
    return {"threads": torch.get_num_threads(), "versions": versions(*packages, "onnxruntime-gpu")}


def _pipeline(job: Job, device: str, dtype: torch.dtype) -> Any:
    if not job["options"].get("optimum"):
        return diffusers.StableDiffusionPipeline.from_pretrained(job["model"], torch_dtype=dtype).to(device)
    from optimum.onnxruntime import ORTStableDiffusionPipeline

    provider = "CUDAExecutionProvider" if device == "cuda" else "CPUExecutionProvider"
    return ORTStableDiffusionPipeline.from_pretrained(job["model"], provider=provider)


def _quantize(unet: Any, kind: str) -> None:
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig, quantize_

    quantize_(unet, Int8WeightOnlyConfig() if kind == "int8 weights" else Int8DynamicActivationInt8WeightConfig())


def _finish(pipe: Any, unet: Any, job: Job) -> None:
    """Put the UNet and the scheduler in, and prepare the VAE alike."""
    pipe.unet = unet
    if job["options"].get("channels_last"):
        pipe.vae.to(memory_format=torch.channels_last)
    if job["options"].get("compile"):
        pipe.vae.decode = torch.compile(pipe.vae.decode, fullgraph=True)
    config = json.loads(Path(job["scheduler"]).read_text(encoding="utf-8"))
    pipe.scheduler = getattr(diffusers, config["_class_name"]).from_config(config)
    pipe.set_progress_bar_config(disable=True)


def draw(job: Job) -> tuple[Any, int]:
    """Draw one picture."""
    pipe = _loaded["pipe"]
    result = pipe(
        job["prompt"],
        num_inference_steps=job["steps"],
        guidance_scale=job["guidance_scale"],
        height=job["size"],
        width=job["size"],
        latents=torch.from_numpy(np.load(job["latents"])).to(_loaded["device"], pipe.unet.dtype),
    )
    return result.images[0], len(pipe.scheduler.timesteps)


def call(job: Job) -> tuple[float, Any]:
    """One call of the UNet with both groups, as the pipelines make it, and guidance."""
    inputs, unet = np.load(job["inputs"]), _loaded["unet"]

    def tensor(name: str) -> torch.Tensor:
        return torch.from_numpy(inputs[name]).to(_loaded["device"], unet.dtype)

    sample, hidden_states = tensor("sample"), tensor("hidden_states")
    timestep, scale = torch.tensor(float(inputs["timestep"])), float(inputs["guidance_scale"])

    def run() -> Any:
        twice = torch.cat([sample, sample])
        predictions = unet(twice, timestep, encoder_hidden_states=hidden_states, return_dict=False)[0]
        return guided(predictions, scale).float().cpu().numpy()

    with torch.no_grad():
        return timed(run)


serve(load, draw, call)
