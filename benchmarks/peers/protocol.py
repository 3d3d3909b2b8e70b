"""What every worker shares: requests in JSON lines on stdin, answers in JSON lines on stdout.

Knows no library but the standard one, for it runs inside of every peer's environment. A request names what to do; the
answer is {"error": TEXT} where it failed. Whatever libraries print goes to stderr.

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
import re
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

Job = dict[str, Any]
Load = Callable[[Job], dict[str, Any]]
Draw = Callable[[Job], tuple[Any, int]]


def versions(*packages: str) -> dict[str, str]:
    """Versions of those of the packages that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def peak_megabytes() -> float:
    """The most memory that this process has held, with the files that it has mapped."""
    match = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
    return int(match[1]) / 1000 if match else 0.0


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
    return {"megabytes": peak_megabytes()}


def serve(load: Load, draw: Draw) -> None:
    """Answer requests until stdin ends.

    Args:
        load: opens the model and tells facts about it.
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
