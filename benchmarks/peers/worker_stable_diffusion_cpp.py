"""Worker for stable-diffusion.cpp, through its Python binding.

It takes no latents. With `rng_type="cpu"`, the seed gives the noise of PyTorch's CPU generator, which is how the given
latents were made.
"""

import json
from pathlib import Path
from typing import Any

from stable_diffusion_cpp import StableDiffusion

from .protocol import Job, serve, versions

_loaded: dict[str, Any] = {}


def load(job: Job) -> dict[str, Any]:
    """Open a checkpoint in diffusers' format."""
    config = json.loads(Path(job["scheduler"]).read_text(encoding="utf-8"))
    if (config["_class_name"], config["timestep_spacing"]) != ("EulerDiscreteScheduler", "linspace"):
        raise ValueError(f"supports only euler of the compared schedulers, not {config['_class_name']}")
    unet = json.loads((Path(job["model"]) / "unet" / "config.json").read_text(encoding="utf-8"))
    if unet["block_out_channels"] != [320, 640, 1280, 1280]:
        # With other widths it returns no picture, and its process ends with a segmentation fault.
        raise ValueError(f"supports only UNets of public checkpoints, not widths of {unet['block_out_channels']}")
    pipe = StableDiffusion(model_path=job["model"], rng_type="cpu", sampler_rng_type="cpu", **job["options"])
    _loaded["pipe"] = pipe
    return {"threads": pipe.n_threads, "versions": versions("stable-diffusion-cpp-python")}


def draw(job: Job) -> tuple[Any, int]:
    """Draw one picture."""
    pictures = _loaded["pipe"].generate_image(
        prompt=job["prompt"],
        sample_method="euler",
        scheduler="discrete",
        sample_steps=job["steps"],
        cfg_scale=job["guidance_scale"],
        width=job["size"],
        height=job["size"],
        seed=job["seed"],
    )
    return pictures[0], job["steps"]


serve(load, draw)
