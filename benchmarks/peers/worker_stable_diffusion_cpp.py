"""Worker for stable-diffusion.cpp, through its Python binding.

It takes no latents. With `rng_type="cpu"`, the seed gives the noise of PyTorch's CPU generator, which is how the given
latents were made. It has no interface for one call of the UNet: a call is the second step of a picture, by its own
clock. Options: those of the binding, and `all_cores`, as by default it takes half of them.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
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
    options = dict(job["options"])
    if options.pop("all_cores", False):
        options["n_threads"] = len(os.sched_getaffinity(0))
    pipe = StableDiffusion(model_path=job["model"], rng_type="cpu", sampler_rng_type="cpu", **options)
    _loaded["pipe"] = pipe
    return {"threads": pipe.n_threads, "versions": versions("stable-diffusion-cpp-python")}


def draw(job: Job) -> tuple[Any, int]:
    """Draw one picture."""
    return _picture(job), job["steps"]


def call(job: Job) -> tuple[float, Any]:
    """Seconds of a step, which makes a call for each group; there is no prediction to compare."""
    inputs = np.load(job["inputs"])
    steps: list[float] = []
    given = {"prompt": "", "steps": 2, "seed": 0, "size": 8 * inputs["sample"].shape[-1]}
    _picture({**given, "guidance_scale": float(inputs["guidance_scale"])}, lambda *step: steps.append(step[2]))
    return steps[-1], None


def _picture(job: Job, on_step: Callable[[int, int, float], None] | None = None) -> Any:
    pictures = _loaded["pipe"].generate_image(
        prompt=job["prompt"],
        sample_method="euler",
        scheduler="discrete",
        sample_steps=job["steps"],
        cfg_scale=job["guidance_scale"],
        width=job["size"],
        height=job["size"],
        seed=job["seed"],
        progress_callback=on_step,
    )
    return pictures[0]


serve(load, draw, call)
