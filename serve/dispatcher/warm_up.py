"""Prepares a device before it takes work: every size is drawn once and timed at growing batches.

Times are kept in the user's cache folder, so that a lazy start has estimates of sizes that it has not drawn yet.
"""

import hashlib
import json
import logging
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from latentrt.runtime.bundle import takes, takes_score
from latentrt.runtime.bundle.manifest import MANIFEST
from latentrt.runtime.errors import OutOfMemoryError
from latentrt.runtime.files import cache_folder, sha256_of_file
from latentrt.runtime.loop.resident import Resident
from latentrt.runtime.protocols import Trajectory
from latentrt.serve.messages import DispatcherOptions

from .costs import WORTH, MeasuredCosts
from .models import LoadedModel
from .queue import Group, Weights

logger = logging.getLogger(__name__)
CALLS = 3  # of each size and batch: the first may compile or capture


def warm_up(models: Mapping[str, LoadedModel], costs: MeasuredCosts, options: DispatcherOptions) -> None:
    """Draw and time every size of every model; with `lazy` only the models' own sizes, at batch 1."""
    kept = _KeptTimes(models, options)
    kept.read(costs)
    for model in (one for of_model in models.values() for one in of_model.passes()):
        sizes = model.sizes()[:1] if options.lazy else model.sizes()
        for number, size in enumerate(sizes, 1):
            start = time.perf_counter()
            most = 1 if options.lazy else options.max_batch
            cap = _prepare(model, size, costs, most=most, fixed=options.batch)
            took = time.perf_counter() - start
            text = f"{model.name} {size[0]}x{size[1]} ({number} of {len(sizes)})"
            logger.info("%s: up to %d images in a UNet call; prepared in %.1f s", text, cap, took)
    kept.write(costs)


def _prepare(model: LoadedModel, size: tuple[int, int], costs: MeasuredCosts, *, most: int, fixed: int | None) -> int:
    """Run one size at growing batches, until an image does not become cheaper; returns the largest that is worth it."""
    options = {"width": size[0], "height": size[1], "num_inference_steps": CALLS, "seed": 0}
    one_pass = {} if model.refiner is None else {"refiner_start": 1}
    request = model.served.request("", options | one_pass | _pictures(model, size))
    trajectory = model.trajectories(request)[0]
    group = Group(Weights(model.name), trajectory.bucket)
    cheapest, count = float("inf"), 1
    if fixed is not None:
        _time(model, group, trajectory, fixed, costs)
        most = 0
    while count <= most:
        try:
            cost = _time(model, group, trajectory, count, costs) / count
        except OutOfMemoryError as error:
            logger.info("%d images of %dx%d do not fit: %s", count, *size, error)
            break
        if cost > (1 - WORTH) * cheapest:
            break
        cheapest, count = cost, count * 2
    _time_decode(model, group, costs)
    return costs.settle_cap(group)


def _pictures(model: LoadedModel, size: tuple[int, int]) -> dict[str, Any]:
    """What models that inpaint or refine begin from; all of it is drawn anew, so that all calls are made."""
    graphs, (width, height) = model.served.bundle.manifest.graphs, size
    inpaints = takes(graphs["denoise"], "extra")
    if not inpaints and not takes_score(graphs["time"]):
        return {}
    mask = {"mask_image": np.full((height, width), 255, np.uint8)} if inpaints else {}
    return {"image": np.zeros((height, width, 3), np.uint8), "strength": 1.0, **mask}


def _time(model: LoadedModel, group: Group, trajectory: Trajectory, count: int, costs: MeasuredCosts) -> float:
    """Milliseconds of a call at this count."""
    slots = model.stages.slots(group.bucket, count)
    try:
        resident = Resident(slots)
        for _ in range(count):
            resident.join(trajectory)
        times = []
        while resident.busy:
            start = time.perf_counter()
            passed = resident.step()
            passed[-1].fetch(0).result()  # waits for a GPU
            times.append(1000 * (time.perf_counter() - start))
    finally:
        slots.close()
    least = min(times)
    costs.observe_call(group, count, times[0])
    costs.observe_call(group, count, least)
    return least


def _time_decode(model: LoadedModel, group: Group, costs: MeasuredCosts) -> None:
    channels = model.served.bundle.manifest.model.latent_channels
    latents = np.zeros((1, channels, group.bucket.height, group.bucket.width), np.float32)
    for _ in range(2):
        start = time.perf_counter()
        model.stages.decode(latents, tiling=False)
        costs.observe_decode(group, 1, 1000 * (time.perf_counter() - start))


class _KeptTimes:
    """The file of measured times. Losing it only costs time."""

    def __init__(self, models: Mapping[str, LoadedModel], options: DispatcherOptions) -> None:
        facts: list[object] = [platform.node(), platform.processor(), str(options.device), options.max_batch]
        facts += [
            [m.name, m.backend, sha256_of_file(m.served.bundle.path / MANIFEST), m.sizes()]
            for model in models.values()
            for m in model.passes()
        ]
        self._identity = hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def read(self, costs: MeasuredCosts) -> None:
        if (file := self._file()) is not None:
            costs.load(file, self._identity)

    def write(self, costs: MeasuredCosts) -> None:
        file = self._file()
        try:
            if file is not None:
                costs.save(file, self._identity)
        except OSError as error:
            logger.info("measured times are not kept: %s", error)

    def _file(self) -> Path | None:
        try:
            return cache_folder() / f"costs-{self._identity[:16]}.json"
        except OSError:
            return None
