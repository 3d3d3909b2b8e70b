"""The workers' side of the protocol: requests as JSON lines on stdin, answers as JSON lines on stdout.

Standard library and numpy only, as it runs in every peer's environment. A request that fails is answered with
{"error": TEXT}. Whatever libraries print goes to stderr.

    {"do": "load", "model": FOLDER, "scheduler": FILE, "options": {...}, "part": "all" or "unet"}
        -> {"seconds": 1.2, "facts": {...}}
    {"do": "draw", "prompt": TEXT, "steps": 20, "size": 512, "guidance_scale": 7.5, "seed": 1, "latents": FILE,
     "picture": FILE or null}
        -> {"seconds": 1.2, "unet_calls": 20}
    {"do": "call", "inputs": FILE, "prediction": FILE or null}
        -> {"seconds": 0.2}
    {"do": "memory"}
        -> {"megabytes": 512.0}

A call is one guided call of the UNet. Its inputs are a .npz file: `sample` (1, 4, h, w), `timestep` (), `hidden_states`
(2, 77, D) of the negative and the positive prompt, `guidance_scale` (). The prediction is a .npy file: (1, 4, h, w),
after guidance. After "load" of the "unet" alone, only calls are asked for.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from benchmarks.common.memory import peak_bytes

Job = dict[str, Any]
Load = Callable[[Job], dict[str, Any]]
Draw = Callable[[Job], tuple[Any, int]]
Call = Callable[[Job], tuple[float, Any]]


def versions(*packages: str) -> dict[str, str]:
    """Versions of those packages that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def guided(predictions: Any, scale: float) -> Any:
    """(1, 4, h, w) of predictions (2, 4, h, w), [negative, positive]."""
    return predictions[:1] + scale * (predictions[1:] - predictions[:1])


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of a function, and its result."""
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def _answer(job: Job, load: Load, draw: Draw, call: Call | None) -> dict[str, Any]:
    if job["do"] == "load":
        seconds, facts = timed(lambda: load(job))
        return {"seconds": seconds, "facts": facts}
    if job["do"] == "draw":
        seconds, (picture, calls) = timed(lambda: draw(job))
        if job.get("picture"):
            picture.save(job["picture"])
        return {"seconds": seconds, "unet_calls": calls}
    if job["do"] == "call":
        if call is None:
            raise ValueError("calls of the UNet are not measured here")
        seconds, prediction = call(job)
        if job.get("prediction") and prediction is not None:
            np.save(job["prediction"], np.asarray(prediction, np.float32))
        return {"seconds": seconds}
    return {"megabytes": peak_bytes() / 1e6}


def serve(load: Load, draw: Draw, call: Call | None = None) -> None:
    """Answer requests until stdin ends.

    Args:
        load: opens the model and returns facts about it.
        draw: returns the picture (PIL) and the number of UNet calls.
        call: returns the seconds of a call, measured without reading its inputs, and the prediction; None for a program
            that returns none.
    """
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.stdin:
        try:
            answer = _answer(json.loads(line), load, draw, call)
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}".strip()}
        print(json.dumps(answer), file=answers, flush=True)
