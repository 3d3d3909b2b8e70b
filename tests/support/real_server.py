"""A real server in processes of its own, and faults that a test plants in its device by a picture's seed."""

import os
import re
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray

from benchmarks.serving.delayed import load_delayed
from benchmarks.serving.server_process import ServerProcess, server_process
from latentrt.runtime import Pipeline
from latentrt.runtime.loop.host import HostSlots
from latentrt.runtime.protocols import Trajectory
from latentrt.runtime.request import Request
from latentrt.runtime.stages import Stages
from latentrt.serve.dispatcher.models import load_pipeline
from latentrt.serve.messages import ModelSpec

__all__ = ["ServerProcess", "body", "metric", "real_server"]

FAULTS = f"{__name__}:load_with_faults"
SIZE = (64, 64)
# Seeds of pictures that abort the process while their texts are encoded, and in their third UNet call; that hang in
# their second one, and that hold NaN.
ABORTS_AT_ONCE, ABORTS_AT_THIRD_CALL, HANGS, NAN = 900_001, 900_003, 900_004, 900_005
_PLANTED = {ABORTS_AT_ONCE, ABORTS_AT_THIRD_CALL, HANGS, NAN}


def real_server(
    *flags: str, delay: int | None = None, cores: Sequence[int] = (), ready: bool = True
) -> AbstractContextManager[ServerProcess]:
    """The embedded model: on ONNX Runtime as "shapes", or on an engine whose UNet calls take `delay` milliseconds."""
    model = ("delay" if delay is None else f"delay-{delay}") + "=engines/shapes"
    common = ("--devices=cpu", "--backend=onnxruntime", f"--sizes={SIZE[0]}x{SIZE[1]}", "--no-access-log")
    models = () if delay is None else (model,)
    return server_process(*models, *common, *flags, loader=FAULTS, cores=cores, ready=ready)


def body(seed: int, *, steps: int = 2, **options: Any) -> dict[str, Any]:
    """A call in JSON; also the options of the same call of `Pipeline`, with its prompt."""
    return {"prompt": f"a red star {seed}", "seed": seed, "num_inference_steps": steps, "scheduler": "euler"} | options


def metric(server: ServerProcess, name: str) -> float:
    """The sum of a metric over its labels; 0 where it is not there yet."""
    text = httpx.get(f"{server.address}/metrics", timeout=60).text
    values = [value for _, value in re.findall(rf"^{name}(\{{.*\}})? (\S+)$", text, re.MULTILINE)]
    return sum(map(float, values))


def load_with_faults(spec: ModelSpec, device: str | None) -> Pipeline:
    """A loader, for the device's process only: its classes are changed for good."""
    _plant()
    return load_delayed(spec, device) if spec.name.startswith("delay-") else load_pipeline(spec, device)


def _plant() -> None:
    trajectories, fill, move, call = Stages.trajectories, HostSlots.fill, HostSlots.move, HostSlots.call
    planted: list[tuple[Trajectory, int]] = []
    in_slots: dict[HostSlots, dict[int, int]] = {}

    def planting(self: Stages, request: Request, **facts: Any) -> list[Trajectory]:
        if ABORTS_AT_ONCE in request.seeds:
            os.abort()
        result = trajectories(self, request, **facts)
        for trajectory, seed in zip(result, request.seeds, strict=True):
            if seed == NAN:
                trajectory.noise[:] = np.nan
            if seed in _PLANTED:
                planted.append((trajectory, seed))
        return result

    def filling(self: HostSlots, slot: int, trajectory: Trajectory) -> None:
        fill(self, slot, trajectory)
        of_slots = in_slots.setdefault(self, {})
        of_slots[slot] = next((seed for known, seed in planted if known is trajectory), 0)

    def moving(self: HostSlots, source: int, target: int) -> None:
        move(self, source, target)
        in_slots[self][target] = in_slots[self][source]

    def calling(self: HostSlots, at: NDArray[np.int32]) -> None:
        for slot, index in enumerate(at.tolist()):
            if (seed := in_slots.get(self, {}).get(slot)) == ABORTS_AT_THIRD_CALL and index == 2:
                os.abort()
            if seed == HANGS and index == 1:
                time.sleep(3600)
        call(self, at)

    Stages.trajectories = planting  # type: ignore[method-assign]
    HostSlots.fill = filling  # type: ignore[method-assign]
    HostSlots.move = moving  # type: ignore[method-assign]
    HostSlots.call = calling  # type: ignore[method-assign]
