"""Worker for latentrt; its environment has latentrt and one backend."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from latentrt.runtime import Pipeline, Plan
from latentrt.runtime.protocols import Trajectory
from latentrt.runtime.scheduler import REGISTERS

from .protocol import Job, serve, timed, versions

_loaded: dict[str, Any] = {}


def load(job: Job) -> dict[str, Any]:
    """Open a bundle with the backend and device of the options. Graphs are loaded when they are used."""
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


def call(job: Job) -> tuple[float, Any]:
    """One call of `denoise`: UNet, guidance and update. What it shares with other calls is computed when slots are
    filled, which is not part of the time."""
    inputs = np.load(job["inputs"])
    if "slots" not in _loaded:
        trajectory = _trajectory(inputs)
        _loaded["slots"] = _loaded["pipe"].slots(trajectory.bucket, 1)
        _loaded["slots"].fill(0, trajectory)
    slots, first = _loaded["slots"], np.zeros(1, np.int32)

    def run() -> Any:
        slots.call(first)
        return slots.fetch(0, REGISTERS - 1).result()[None]

    return timed(run)


def _trajectory(inputs: Any) -> Trajectory:
    """A plan of one call, which leaves the sample as it is and returns the model's output as the last register."""
    initial, update = np.zeros((REGISTERS, 2)), np.zeros((1, REGISTERS, REGISTERS + 2))
    initial[0, 0] = update[0, 0, 0] = update[0, -1, REGISTERS] = 1
    level, scale = np.float32([[0, 1], [0, 1]]), float(inputs["guidance_scale"])
    plan = Plan(inputs["timestep"].reshape(1), update, initial, np.zeros(1), level, np.zeros((1, 2)))
    return Trajectory(plan, inputs["hidden_states"], np.float32([[1 - scale, scale]]), inputs["sample"])


serve(load, draw, call)
