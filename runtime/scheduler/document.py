"""Plans as JSON: for runtimes in other languages, and for images drawn with a custom plan."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np

from latentrt.runtime.errors import SchedulerError

from .config import checked_options, plain
from .diffusers_options import OPTIONS
from .plan import Plan

PLAN_FORMAT = "latentrt.plan/1"
# The tests compare every model call of every class with this version, to this relative error.
CHECKED_AGAINST = {"library": "diffusers", "version": "0.42.1", "tolerance": 2e-5}
# Samplers that diffusers does not have: k-diffusion's functions, or the paper's formula.
CHECKED_BY_DEFINITION = {"library": "k-diffusion", "version": "0.1.1.post1", "tolerance": 1e-5}


def noise_ratios(plan: Plan) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Noise-to-signal ratio before every call and at the end; infinite where there is no signal. Shape (M + 1,)."""
    alpha, sigma = plan.noise_levels.T.astype(np.float64)
    with np.errstate(divide="ignore"):
        return np.asarray(sigma / alpha)


def plan_document(plan: Plan, config: Mapping[str, Any], steps: int | None) -> dict[str, Any]:
    """Everything that a runtime in another language needs, and how the plan was verified.

    `num_inference_steps` is null with custom timesteps or sigmas.

    `residual` is the largest relative difference over all calls between running the plan in float32 and in float64,
    with a nonlinear model.
    """
    return {
        "scheduler_config": plain(checked_options(config)),
        "num_inference_steps": steps,
        "checked_against": CHECKED_AGAINST if config.get("_class_name") in OPTIONS else CHECKED_BY_DEFINITION,
        "residual": residual(plan),
        **plan_to_document(plan),
    }


def plan_to_document(plan: Plan) -> dict[str, Any]:
    """The plan's arrays alone; float32 values are exact in JSON."""
    return {"format": PLAN_FORMAT, **{name: array.tolist() for name, array in plan.to_arrays().items()}}


def plan_from_document(document: Mapping[str, Any]) -> Plan:
    """The plan in a document; other keys are ignored. Raises `SchedulerError` if it is malformed."""
    names = [field.name for field in fields(Plan) if field.name != "guidance" or "guidance" in document]
    try:
        return Plan.from_arrays({name: np.asarray(document[name], np.float32) for name in names})
    except KeyError as error:
        raise SchedulerError(f"the plan is missing {error}; expected the arrays {', '.join(names)}") from error
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        if isinstance(error, SchedulerError):
            raise
        raise SchedulerError(f"the plan contains a value that is not a number: {str(error)[:200]}") from error


def residual(plan: Plan) -> float:
    """See `plan_document`."""
    runs = []
    for dtype in (np.float32, np.float64):
        rng = np.random.default_rng(0)
        noise, clean = rng.standard_normal((2, 256)).astype(dtype)
        runs.append(list(plan.states(_probe, noise, clean, lambda rng=rng: rng.standard_normal(256))))  # type: ignore[misc]
    return max(float(np.abs(a[0] - b[0]).max() / np.abs(b[0]).max()) for a, b in zip(*runs, strict=True))


def _probe(x: np.ndarray[Any, Any], t: Any) -> np.ndarray[Any, Any]:
    return np.asarray(np.tanh(x + x.dtype.type(t) / 1000), x.dtype)
