"""Worker for NVIDIA's demo (demo/Diffusion in TensorRT's repository); runs in the demo's own environment.

NVIDIA_DEMO is the demo's folder. The demo opens the download that it has cached for version "1.4", which has the
architecture of 1.5; the checkpoint is copied to that cache. Engines of one size are built with the first picture and
kept. CUDA graphs are on, as the demo's README recommends.
"""

# ruff: noqa: E402  # the demo's `deps` must be configured before the libraries that it provides are imported

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, os.environ["NVIDIA_DEMO"])
from demo_diffusion import deps

deps.configure("sd", fallback=True)

import numpy as np
import tensorrt
import torch
from cuda.bindings import runtime as cudart
from demo_diffusion import pipeline as demo
from diffusers import UNet2DConditionModel
from PIL import Image

from .protocol import Job, serve, versions

VERSION, KIND = "1.4", "TXT2IMG"
SCHEDULERS = {"DDIMScheduler": "DDIM", "EulerDiscreteScheduler": "Euler"}
_loaded: dict[str, Any] = {}


def load(job: Job) -> dict[str, Any]:
    """Copy the checkpoint to where the demo caches its downloads."""
    checkpoint, config = Path(job["model"]), json.loads(Path(job["scheduler"]).read_text(encoding="utf-8"))
    unet = json.loads((checkpoint / "unet" / "config.json").read_text(encoding="utf-8"))
    if unet["cross_attention_dim"] != 768:
        raise ValueError(f"expected text of 768 channels, as in 1.4, not {unet['cross_attention_dim']}")
    work = checkpoint.with_name(f"{checkpoint.name}-nvidia-demo")
    cache = work / "pytorch_model" / VERSION / KIND
    scheduler = cache / config["_class_name"].lower() / "scheduler"
    scheduler.mkdir(parents=True, exist_ok=True)
    (scheduler / "scheduler_config.json").write_text(json.dumps(config), encoding="utf-8")
    for part in ("tokenizer", "text_encoder", "vae"):
        shutil.copytree(checkpoint / part, cache / part, dirs_exist_ok=True)
    if not (cache / "unet").exists():  # the demo loads the variant in fp16
        model = UNet2DConditionModel.from_pretrained(checkpoint / "unet", torch_dtype=torch.float16)
        model.save_pretrained(cache / "unet", variant="fp16")
    vae = json.loads((checkpoint / "vae" / "config.json").read_text(encoding="utf-8"))
    _loaded.update(work=work, scheduler=SCHEDULERS[config["_class_name"]], scaling=vae.get("scaling_factor", 0.18215))
    return {"versions": {**versions("torch", "diffusers"), "tensorrt": tensorrt.__version__}}


def pipeline(job: Job) -> Any:
    """The demo's pipeline with its engines, made with the first picture."""
    if "pipe" not in _loaded:
        work = _loaded["work"]
        pipe = demo.StableDiffusionPipeline(
            version=VERSION,
            pipeline_type=demo.PIPELINE_TYPE[KIND],
            max_batch_size=4,
            denoising_steps=job["steps"],
            scheduler=_loaded["scheduler"],
            guidance_scale=job["guidance_scale"],
            use_cuda_graph=True,
            vae_scaling_factor=_loaded["scaling"],
            framework_model_dir=str(work / "pytorch_model"),
            output_dir=str(work / "output"),
        )
        pipe.loadEngines(
            str(work / f"engine-{job['size']}"),
            str(work / "pytorch_model"),
            str(work / "onnx"),
            onnx_opset=19,
            opt_batch_size=1,
            opt_image_height=job["size"],
            opt_image_width=job["size"],
            static_batch=True,
            static_shape=True,
        )
        _, memory = cudart.cudaMalloc(pipe.calculateMaxDeviceMemory())
        pipe.activateEngines(memory)
        pipe.loadResources(job["size"], job["size"], 1, job["seed"])
        _loaded["pipe"] = pipe
    return _loaded["pipe"]


def draw(job: Job) -> tuple[Any, int]:
    """Draw one picture."""
    pipe = pipeline(job)
    latents = torch.from_numpy(np.load(job["latents"])).to(pipe.device, torch.float32)
    pipe.denoising_steps = job["steps"]
    pipe.initialize_latents = lambda **_: latents * pipe.scheduler.init_noise_sigma
    images, _ = pipe.infer([job["prompt"]], [""], job["size"], job["size"], warmup=True, save_image=False)
    pixels = ((images + 1) * 255 / 2).clamp(0, 255).permute(0, 2, 3, 1).round().to(torch.uint8).cpu().numpy()
    return Image.fromarray(pixels[0]), len(pipe.scheduler.timesteps)


serve(load, draw)
