"""A plan as JSON, for runtimes in other languages."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from .config import complete
from .plan import Plan

PLAN_FORMAT = "latentrt.plan/1"
# The tests compare every call of every class with this version, to this relative error.
CHECKED_AGAINST = {"library": "diffusers", "version": "0.42.1", "tolerance": 2e-5}


def noise_ratios(plan: Plan) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Sigma of every call's input and of the end: noise per signal, infinite without signal. Shape (M + 1,)."""
    alpha, sigma = plan.noise_levels.T.astype(np.float64)
    with np.errstate(divide="ignore"):
        return np.asarray(sigma / alpha)


def plan_document(plan: Plan, config: Mapping[str, Any], steps: int) -> dict[str, Any]:
    """Everything that a runtime in another language needs, and what vouches for it.

    `residual` is the largest relative difference, over all calls, between the plan run in float32 and in float64 with
    a nonlinear model.
    """
    return {
        "format": PLAN_FORMAT,
        "scheduler_config": {key: _plain(value) for key, value in complete(config).items()},
        "num_inference_steps": steps,
        "checked_against": CHECKED_AGAINST,
        "residual": residual(plan),
        **{name: array.tolist() for name, array in plan.to_arrays().items()},
    }


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not np.isfinite(value) else value


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
