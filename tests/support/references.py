"""diffusers' pipelines of each task, and what a call of them gives: the reference of pictures and latents."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from PIL import Image, ImageDraw

from latentrt.runtime import Pipeline
from latentrt.runtime.goldens import psnr, relative_error

PSNR, LATENTS = 50.0, 1e-3
TASKS = ("text", "image", "inpaint")
SD = ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline")
SDXL = tuple(name.replace("Diffusion", "DiffusionXL") for name in SD)
LCM = ("LatentConsistencyModelPipeline", "LatentConsistencyModelImg2ImgPipeline", SD[2])
DRAWS = [(7, (48, 40)), (2**31 + 11, (40, 64))]


@cache
def components(checkpoint: Path) -> dict[str, Any]:
    return dict(diffusers.DiffusionPipeline.from_pretrained(checkpoint, torch_dtype=torch.float32).components)


@cache
def reference(checkpoint: Path, name: str) -> Any:
    """diffusers' pipeline of a task, whatever pipeline the checkpoint was saved with."""
    safety = {} if "XL" in name else {"requires_safety_checker": False}
    pipe = getattr(diffusers, name)(**components(checkpoint), **safety)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def picture(size: tuple[int, int]) -> Image.Image:
    """Smooth colours, a little larger than the size."""
    height, width = size[0] + 3, size[1] + 1
    y, x = np.mgrid[0:height, 0:width] / 16
    waves = [np.sin(x + 1), np.cos(y * 1.3), np.sin(x * y / 3)]
    return Image.fromarray(np.uint8(127.5 + 120 * np.stack(waves, -1)))


def mask(size: tuple[int, int]) -> Image.Image:
    """An ellipse; its size differs from the picture's."""
    image = Image.new("L", (2 * size[1], 2 * size[0]))
    ImageDraw.Draw(image).ellipse((size[1] // 2, size[0] // 3, 2 * size[1], size[0] * 3 // 2), fill=255)
    return image


def task_options(task: str, size: tuple[int, int]) -> dict[str, Any]:
    height, width = size
    return {
        "text": {"height": height, "width": width},
        "image": {"image": picture(size), "strength": 0.6},
        "inpaint": {"image": picture(size), "mask_image": mask(size), "height": height, "width": width}
        # Up to full strength, where nothing of the picture remains.
        | {"strength": 0.8 if size == DRAWS[0][1] else 1.0},
    }[task]


def expected(checkpoint: Path, name: str, seed: int, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    """Latents (1, C, h, w) and picture (H, W, 3) of diffusers."""
    pipe = reference(checkpoint, name)
    config = options.pop("scheduler", None) or json.loads((checkpoint / "scheduler/scheduler_config.json").read_text())
    pipe.scheduler = getattr(diffusers, config["_class_name"]).from_config(config)
    if name in LCM[:2]:
        options.pop("negative_prompt", None)
    latents = pipe(generator=[torch.Generator().manual_seed(seed)], output_type="latent", **options).images
    mean, std = pipe.vae.config.get("latents_mean"), pipe.vae.config.get("latents_std")
    with torch.no_grad():
        scaled = latents * torch.tensor(std or 1.0).view(1, -1, 1, 1) / pipe.vae.config.scaling_factor
        pixels = pipe.vae.decode(scaled + torch.tensor(mean or 0.0).view(1, -1, 1, 1)).sample
    return latents.numpy(), np.asarray(pipe.image_processor.postprocess(pixels, output_type="pil")[0])


def agrees(pipe: Pipeline, wanted: tuple[np.ndarray, np.ndarray], *, latents: float = LATENTS, **options: Any) -> bool:
    """Whether a call's picture and latents are as wanted; `latents` is their largest relative error."""
    result = pipe(output_type="np", **options)
    pictures = np.asarray(result.images)
    return psnr(pictures[0], wanted[1]) >= PSNR and relative_error(result.latents, wanted[0]) <= latents
