"""Classifier-free guidance as the weights of each call's predictions (arXiv 2207.12598)."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from latentrt.runtime.arrays import Float32
from latentrt.runtime.errors import InputError
from latentrt.runtime.scheduler import Plan


def check_interval(start: float, end: float) -> None:
    """Raise `InputError` unless guidance_start < guidance_end."""
    if start >= end:
        raise InputError(f"guidance_start={start:g}, guidance_end={end:g}: expected guidance_start < guidance_end")


def guidance_weights(scale: float, plan: Plan, *, start: float = 0.0, end: float = 1.0) -> Float32:
    """(calls, 2) float32, weights of the predictions for [negative, positive].

    Guidance is on from call `int(start * calls)` to before call `int(end * calls)` (arXiv 2404.07724; the rounding is
    that of diffusers' guiders); the other calls take the positive prediction alone.
    """
    calls = len(plan)
    weights = np.tile(np.array([0, 1], np.float32), (calls, 1))
    scales = plan.guidance.astype(np.float64) @ [1, scale]
    on = slice(int(start * calls), int(end * calls))
    weights[on] = np.stack([1 - scales, scales], 1)[on]
    return weights


# AUTOMATIC1111's web UI divides its scale by this for CFG++, whose own scale is from 0 to 1.
PLUS_PLUS = 12.5


def is_plus_plus(scheduler: Mapping[str, Any] | Plan) -> bool:
    """Whether a resolved scheduler or a plan sets the guidance of each call, as CFG++ does."""
    if isinstance(scheduler, Plan):
        return bool((scheduler.guidance != [0, 1]).any())
    return scheduler.get("cfg_pp") is True


def check_plus_plus(values: Mapping[str, Any], *, distilled: bool) -> None:
    """Raise `InputError` for options that have no meaning with CFG++."""
    if distilled:
        raise InputError("CFG++ adds noise back by the unguided prediction, which this distilled model does not make")
    if values["guidance_rescale"]:
        raise InputError(
            "guidance_rescale with CFG++: the guided prediction of a call is not what the paper rescales; leave it out"
        )
