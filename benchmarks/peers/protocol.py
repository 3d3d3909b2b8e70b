"""The workers' side of the protocol: requests as JSON lines on stdin, answers as JSON lines on stdout.

Standard library only, as it runs in every peer's environment. A request that fails is answered with {"error": TEXT}.
Whatever libraries print goes to stderr.

    {"do": "load", "model": FOLDER, "scheduler": FILE, "options": {...}}
        -> {"seconds": 1.2, "facts": {...}}
    {"do": "draw", "prompt": TEXT, "steps": 20, "size": 512, "guidance_scale": 7.5, "seed": 1, "latents": FILE,
     "picture": FILE or null}
        -> {"seconds": 1.2, "unet_calls": 20}
    {"do": "memory"}
        -> {"megabytes": 512.0}
"""

import json
import os
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from benchmarks.common.memory import peak_bytes

Job = dict[str, Any]
Load = Callable[[Job], dict[str, Any]]
Draw = Callable[[Job], tuple[Any, int]]


def versions(*packages: str) -> dict[str, str]:
    """Versions of those packages that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _answer(job: Job, load: Load, draw: Draw) -> dict[str, Any]:
    start = time.perf_counter()
    if job["do"] == "load":
        facts = load(job)
        return {"seconds": time.perf_counter() - start, "facts": facts}
    if job["do"] == "draw":
        picture, calls = draw(job)
        seconds = time.perf_counter() - start
        if job.get("picture"):
            picture.save(job["picture"])
        return {"seconds": seconds, "unet_calls": calls}
    return {"megabytes": peak_bytes() / 1e6}


def serve(load: Load, draw: Draw) -> None:
    """Answer requests until stdin ends.

    Args:
        load: opens the model and returns facts about it.
        draw: returns the picture (PIL) and the number of UNet calls.
    """
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.stdin:
        try:
            answer = _answer(json.loads(line), load, draw)
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}".strip()}
        print(json.dumps(answer), file=answers, flush=True)
